"""``esper serve``: run a service."""

from pathlib import Path
from typing import Annotated

import typer

serve = typer.Typer(name="serve", no_args_is_help=True, help="Run a service.")


@serve.callback()
def _services() -> None:
    """Run a service."""


@serve.command()
def urza(
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on; beyond loopback, keys are needed.")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.")] = None,
    root: Annotated[Path | None, typer.Option("--root", help="Folder of the library.", metavar="DIR")] = None,
    certificate: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate for HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option("--tls-key", help="Its key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the log as JSON.")] = False,
) -> None:
    """Serve the artifact store until it is interrupted; settings come from [urza] and ESPER_URZA_..."""
    from esper.cli.stores import store_config
    from esper.errors import ConfigError
    from esper.services.urza.rest.application import create_app
    from esper.services.urza.rest.server import run
    from esper.telemetry.logs import to_terminal

    config = store_config(root=root, host=host, port=port)
    if (certificate is None) != (key is None):
        raise ConfigError("HTTPS takes a certificate and its key", todo="give --tls-cert and --tls-key")
    tls = None if certificate is None or key is None else (certificate, key)
    with to_terminal(json=as_json):
        run(lambda: create_app(config), config, tls=tls)
