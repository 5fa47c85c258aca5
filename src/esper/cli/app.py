"""The verbs, gathered."""

from typing import Annotated

import typer

from esper.cli.blueprint import blueprint
from esper.cli.bus import bus
from esper.cli.demo import demo
from esper.cli.export import export
from esper.cli.kernel import kernel
from esper.cli.keys import keys
from esper.cli.library import library
from esper.cli.serve import serve

app = typer.Typer(name="esper", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from esper import __version__

        typer.echo(f"esper {__version__}")
        raise typer.Exit


@app.callback()
def esper(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """PyTorch models that grow while they train."""


app.command(name="demo")(demo)
app.command(name="export")(export)
app.add_typer(blueprint)
app.add_typer(bus)
app.add_typer(kernel)
app.add_typer(keys)
app.add_typer(library)
app.add_typer(serve)
