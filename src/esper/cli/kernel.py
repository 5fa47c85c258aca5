"""``esper kernel``: what the forge made."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from esper.cli.asked import AsJson, KeyFile, Root, Store, Urza
from esper.cli.tables import NOTHING, lines_of

if TYPE_CHECKING:
    from esper.contracts.kernel import ValidationResult
    from esper.contracts.store import KernelRecord

kernel = typer.Typer(name="kernel", no_args_is_help=True, help="What the forge made.")

Id = Annotated[str, typer.Argument(help="Content address of a kernel.", metavar="KERNEL")]


@kernel.command(name="list")
def list_(
    tags: Annotated[list[str] | None, typer.Option("--tag", help="Any of these; may be given again.")] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="pending_validation, validated, rejected or retired.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=200, help="How many, the fastest.")] = 50,
    urza: Urza = None,
    key_file: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """List kernels, fastest first."""
    from esper.cli.asked import at_store
    from esper.contracts.kernel import KernelStatus
    from esper.contracts.store import KernelQuery
    from esper.errors import ConfigError

    if status is not None and status not in list(KernelStatus):
        raise ConfigError(f"there is no status {status!r}", todo=f"give one of {', '.join(KernelStatus)}")
    query = KernelQuery.model_validate({"tags": tags or [], "status": status, "limit": limit})
    page = at_store(lambda store: store.search(query), "kernel list", urza, key_file, root)
    if as_json:
        typer.echo(page.model_dump_json())
        return
    rows = [("KERNEL", "BLUEPRINT", "STATUS", "DEVICE", "EXAMPLES/S", "LATENCY MS", "KIB")]
    rows += [
        (
            one.kernel_id, f"{one.name} {one.version}", str(one.status), one.target_device,
            _number(one.throughput, ".0f"), _number(one.latency_ms, ".3f"), f"{one.size_bytes / 1024:.1f}",
        )
        for one in page.kernels
    ]  # fmt: skip
    for line in lines_of(rows, right=(4, 5, 6)):
        typer.echo(line)


@kernel.command()
def show(
    kernel_id: Id, urza: Urza = None, key_file: KeyFile = None, root: Root = None, as_json: AsJson = False
) -> None:
    """Show a kernel with what its validation found."""
    from esper.cli.asked import at_store

    found, report = at_store(lambda store: _with_report(store, kernel_id), "kernel show", urza, key_file, root)
    if as_json:
        told = None if report is None else report.model_dump(mode="json")
        typer.echo(json.dumps({**found.model_dump(mode="json"), "report": told}))
        return
    typer.echo(f"{found.kernel_id}  {found.status}")
    typer.echo(
        f"{found.name} {found.version}, {found.target_device}, {found.optimization_level}, {found.size_bytes:,} bytes"
    )
    for gate in ("correctness", "performance", "safety", "stability") if report is not None else ():
        result = getattr(report, gate)
        if result is None:
            typer.echo(f"{gate}: not measured yet")
            continue
        typer.echo(f"{gate}: {'passed' if result.passed else 'stayed shut'}")
        for reason in result.reasons:
            typer.echo(f"  {reason}")
        for name, value in sorted(result.metrics.items()):
            typer.echo(f"  {name:<24} {value:.6g}")


@kernel.command()
def compare(
    one: Id,
    other: Id,
    urza: Urza = None,
    key_file: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Lay what was measured of two kernels side by side."""
    from esper.cli.asked import at_store

    async def both(store: Store) -> "list[KernelRecord]":
        return [await store.get_kernel(which) for which in (one, other)]

    found = at_store(both, "kernel compare", urza, key_file, root)
    first, second = ({n: v for n, v in one.validation_metrics.items() if isinstance(v, int | float)} for one in found)
    names = sorted(first.keys() | second.keys())
    if as_json:
        typer.echo(json.dumps({"kernels": [one, other], "metrics": {n: [first.get(n), second.get(n)] for n in names}}))
        return
    rows = [("METRIC", "ONE", "OTHER", "OTHER/ONE")]
    for name in names:
        a, b = first.get(name), second.get(name)
        ratio = NOTHING if not a or b is None else f"{b / a:.2f}"
        rows.append((name, _number(a, ".6g"), _number(b, ".6g"), ratio))
    for line in lines_of(rows, right=(1, 2, 3)):
        typer.echo(line)


@kernel.command()
def verify(
    kernel_id: Id, urza: Urza = None, key_file: KeyFile = None, root: Root = None, as_json: AsJson = False
) -> None:
    """Read a kernel's bytes, check their digest, and pass them through every gate again on this machine."""
    from esper.cli.asked import at_store

    data = at_store(lambda store: store.read(kernel_id), "kernel verify", urza, key_file, root)
    from esper.services.tezzeret.verification import verified

    report = verified(kernel_id, data)
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        for reason in report.reasons:
            typer.echo(reason)
        typer.echo(f"{kernel_id}  {'every gate let it pass' if report.passed else 'refused'}")
    if not report.passed:
        raise typer.Exit(4)


@kernel.command()
def export(
    kernel_id: Id,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file; one that is there stays.", metavar="FILE")],
    urza: Urza = None,
    key_file: KeyFile = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Write a kernel's bytes, which are safetensors with the design in them, to a file."""
    from esper.cli.asked import at_store
    from esper.errors import ConfigError

    data = at_store(lambda store: store.read(kernel_id), "kernel export", urza, key_file, root)
    try:
        with output.open("xb") as file:
            file.write(data)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written", why=error.strerror or str(error)) from None
    done = {"kernel_id": kernel_id, "file": str(output), "size_bytes": len(data)}
    typer.echo(json.dumps(done) if as_json else f"{output}: {len(data):,} bytes")


async def _with_report(store: Store, kernel_id: str) -> "tuple[KernelRecord, ValidationResult | None]":
    """Return a kernel with its report, or None where it waits for one."""
    from esper.errors import NotFound

    found = await store.get_kernel(kernel_id)
    try:
        return found, await store.get_report(kernel_id)
    except NotFound:
        return found, None


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)
