"""``esper bus``: what travels between parts."""

import json
from typing import Annotated

import typer

bus = typer.Typer(name="bus", no_args_is_help=True, help="What travels between parts.")


@bus.command()
def topics(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """List the streams with their contracts, writers and readers."""
    from esper.contracts.topics import TOPICS

    if as_json:
        typer.echo(json.dumps({"topics": [topic.to_json() for topic in TOPICS.values()]}))
        return
    rows = [("STREAM", "MESSAGE", "WRITERS", "READERS", "RETENTION")]
    for topic in TOPICS.values():
        message = f"{topic.model.__name__} {topic.version}"
        rows.append((topic.stream, message, ", ".join(topic.writers), ", ".join(topic.readers), topic.retention))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
