"""``esper export``: write a saved model so that it can be used without Esper, and check what was written."""

import json
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(help="Folder that esper.save_pretrained wrote.", metavar="MODEL")],
    base: Annotated[str, typer.Option("--base", help="What makes the host: package.module:make_model.")],
    format: Annotated[str, typer.Option("--format", help="safetensors, pt2, onnx or py.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the files.", metavar="DIR")],
    example: Annotated[
        str | None,
        typer.Option(
            "--example", help="Inputs: a .npz or .safetensors file, or a shape such as 6,3,32,32 or 6,128:int64:1000."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Run the files beside the model, and measure the difference.")
    ] = True,
    fixed_batch: Annotated[
        bool, typer.Option("--fixed-batch", help="Take the example's batch size for granted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Write a saved model so that it can be used without Esper, and check what was written."""
    from esper.exporting import export as write
    from esper.exporting.arguments import base_named, read_example, saved_model
    from esper.services.tolaria.checkpoint import from_pretrained

    inputs = None if example is None else read_example(example)
    grown = from_pretrained(saved_model(model), base_named(base))
    report = write(grown, output, format=format, example=inputs, verify=verify, fixed_batch=fixed_batch)
    if as_json:
        typer.echo(json.dumps(report.to_json(), allow_nan=False))
        return
    for line in (*report.files, *(f"note: {note}" for note in report.notes), f"batch: {report.batch}"):
        typer.echo(line)
    for check in report.checks:
        typer.echo(f"{check.inputs:<12} {check.difference:.1e}")
    found = "not verified" if report.difference is None else f"largest difference {report.difference:.1e}"
    typer.echo(f"{found}, {report.tolerance:g} is allowed")
