"""``esper demo``: grow a small network on real data, and hold it against its controls."""

import json
from typing import Annotated

import typer


def demo(
    task: Annotated[str, typer.Argument(help="digits, spirals or pydoc.", metavar="TASK")],
    seeds: Annotated[int | None, typer.Option("--seeds", help="How many seeds to report, counted from 0.")] = None,
    root: Annotated[str, typer.Option("--root", help="Folder for what growing runs write.")] = "./esper-runs",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A fifth of the steps: shows how it works, and proves nothing.")
    ] = False,
) -> None:
    """Grow a small network on real data, and hold it against its controls."""
    from esper.cli.stage import Stage
    from esper.demos.demo import Demo

    run = Demo(task, num_seeds=seeds, root=root, quick=quick)
    with Stage(run, silent=as_json) as stage:
        for message in run.run():
            stage.show(message)
    if as_json:
        typer.echo(json.dumps(run.to_json(), allow_nan=False))
    else:
        stage.conclude()
