"""``esper blueprint``: designs, as files and in the store."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli.asked import AsJson, KeyFile, Root, Urza
from esper.cli.tables import NOTHING, lines_of

if TYPE_CHECKING:
    from esper.ir.diagnosis import Diagnosis

blueprint = typer.Typer(name="blueprint", no_args_is_help=True, help="Designs, as files and in the store.")

File = Annotated[Path, typer.Argument(help="A file with the JSON of a blueprint.", metavar="FILE")]
Id = Annotated[str, typer.Argument(help="Its content address.", metavar="BLUEPRINT")]
Level = Annotated[str, typer.Option("--level", help="O0 to O3.")]
_MAX_SHOWN = 10
REFUSED = 4
DTYPES = ("float32", "float64", "bfloat16", "float16")


@blueprint.command()
def lint(
    file: File,
    every: Annotated[bool, typer.Option("--all", help=f"Every finding, not the first {_MAX_SHOWN}.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what is wrong with a file: every fault with its line, and what would waste parameters."""
    from esper.cli.snippets import fault_to_json

    text, found = _read(file)
    if as_json:
        digest = None if found.ir is None else found.ir.digest
        faults = [fault_to_json(fault) for fault in found.faults]
        typer.echo(json.dumps({"file": str(file), "sound": found.is_sound, "digest": digest, "findings": faults}))
    else:
        _tell(file, text, found, None if every else _MAX_SHOWN)
        if found.is_sound:
            typer.echo(f"{file}: sound" + (f", {len(found.faults)} warnings" if found.faults else ""))
    if not found.is_sound:
        raise typer.Exit(REFUSED)


@blueprint.command()
def submit(
    file: File,
    name: Annotated[str | None, typer.Option("--name", help="Otherwise that in the file.")] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="A tag; may be given again.")] = None,
    priority: Annotated[int, typer.Option("--priority", min=1, max=10, help="10 is the most urgent.")] = 5,
    level: Level = "O0",
    urza: Urza = None,
    key_file: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Send a file to the store, and queue its build."""
    from esper.cli.asked import at_store
    from esper.contracts.kernel import BlueprintSubmissionRequest, BuildSpec

    text, found = _read(file)
    if found.ir is None or not found.is_sound:
        _tell(file, text, found, _MAX_SHOWN, to_errors=True)
        raise typer.Exit(REFUSED)
    _check_level(level)
    request = BlueprintSubmissionRequest(
        name=name or found.ir.name, architecture_ir=found.ir.to_json(), submitted_by="command line", tags=tags or [],
        priority=priority, build=BuildSpec(level=level),
    )  # fmt: skip
    answer = at_store(lambda store: store.submit(request), f"blueprint submit {file}", urza, key_file, root)
    if as_json:
        typer.echo(answer.model_dump_json())
        return
    typer.echo(f"{answer.blueprint_id}  {answer.status}: {answer.message}")
    if answer.queue_position is not None:
        eta_s = answer.estimated_compilation_time_s
        expected = "nothing was measured yet" if eta_s is None else f"expected in {eta_s:.1f} s"
        typer.echo(f"place {answer.queue_position} in the queue, {expected}")


@blueprint.command()
def withdraw(
    blueprint_id: Id,
    level: Level = "O0",
    weight_seed: Annotated[int, typer.Option("--weight-seed", min=0, help="Of the build.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the build.")] = "float32",
    urza: Urza = None,
    key_file: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Take a build back that waits or is at work; submitting it again starts over."""
    from esper.cli.asked import at_store
    from esper.contracts.kernel import BuildSpec
    from esper.errors import ConfigError

    _check_level(level)
    if dtype not in DTYPES:
        raise ConfigError(f"there is no type {dtype!r}", todo=f"give one of {', '.join(DTYPES)}")
    build = BuildSpec(weight_seed=weight_seed, dtype=dtype, level=level)
    deed = f"blueprint withdraw {blueprint_id}"
    at_store(lambda store: store.withdraw(blueprint_id, build), deed, urza, key_file, root)
    done = {"blueprint_id": blueprint_id, "build": build.model_dump(), "status": "withdrawn"}
    typer.echo(json.dumps(done) if as_json else f"{blueprint_id}  withdrawn")


@blueprint.command()
def show(
    blueprint_id: Id,
    urza: Urza = None,
    key_file: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show a blueprint of the store: where it comes from, and its operations."""
    from esper.cli.asked import at_store
    from esper.ir import BlueprintIR, Reads

    found = at_store(lambda store: store.get_blueprint(blueprint_id), "blueprint show", urza, key_file, root)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    ir = BlueprintIR.from_json(found.architecture_ir)
    params = sum(tensor.numel for tensor in ir.tensors.values() if tensor.trainable)
    widths = f"{ir.channels}" if ir.reads is Reads.OUTPUT else f"{ir.channels} to {ir.out_channels}"
    typer.echo(f"{found.name} {found.version}  {found.status}  {ir.layout}, {widths} channels, {params:,} parameters")
    typer.echo(f"{found.blueprint_id}  tags: {', '.join(found.tags) or NOTHING}")
    rows = [("NODE", "OPERATION", "INPUTS", "ATTRIBUTES")]
    for node in ir.nodes:
        attrs = " ".join(f"{name}={value}" for name, value in node.attrs.items())
        rows.append((f"{node.id} *" if node.id == ir.output else node.id, node.op, ", ".join(node.inputs), attrs))
    for line in lines_of(rows):
        typer.echo(line)


@blueprint.command()
def bench(file: File, as_json: AsJson = False) -> None:
    """Build a file in a child process of this machine, and tell what was measured of it."""
    import asyncio

    from esper.services.tezzeret.trying import tried

    text, found = _read(file)
    if found.ir is None or not found.is_sound:
        _tell(file, text, found, _MAX_SHOWN, to_errors=True)
        raise typer.Exit(REFUSED)
    artifact, report = asyncio.run(tried(found.ir))
    measured = {name: value for gate in report.gates for name, value in gate.metrics.items()}
    measured["compilation_time_ms"] = artifact.compilation_time_ms
    if as_json:
        told = {
            "kernel_id": artifact.artifact_id,
            "passed": report.passed,
            "reasons": report.reasons,
            "metrics": measured,
        }
        typer.echo(json.dumps(told))
    else:
        for reason in report.reasons:
            typer.echo(reason)
        for line in lines_of([(name, f"{value:.6g}") for name, value in sorted(measured.items())], right=(1,)):
            typer.echo(line)
    if not report.passed:
        raise typer.Exit(REFUSED)


def _check_level(level: str) -> None:
    from esper.contracts.kernel import LEVELS
    from esper.errors import ConfigError

    if level not in LEVELS:
        raise ConfigError(f"there is no level {level!r}", todo="give O0, O1, O2 or O3")


def _read(file: Path) -> "tuple[str, Diagnosis]":
    from esper.errors import NotFound
    from esper.ir.diagnosis import diagnose

    try:
        text = file.read_bytes().decode("utf-8", "backslashreplace")
    except OSError as error:
        raise NotFound(f"{file} cannot be read", why=error.strerror or str(error)) from None
    return text, diagnose(text)


def _tell(file: Path, text: str, found: "Diagnosis", limit: int | None, *, to_errors: bool = False) -> None:
    from esper.cli.snippets import lines_about

    for fault in found.faults[:limit]:
        for line in lines_about(fault, str(file), text):
            typer.echo(line, err=to_errors)
    if limit is not None and len(found.faults) > limit:
        typer.echo(f"and {len(found.faults) - limit} more: esper blueprint lint --all {file}", err=to_errors)
