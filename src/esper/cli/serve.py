"""``esper serve``: run a service."""

from pathlib import Path
from typing import Annotated

import typer

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on; beyond loopback, keys are needed.")]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on.")]
Certificate = Annotated[Path | None, typer.Option("--tls-cert", help="Certificate for HTTPS.")]
CertificateKey = Annotated[Path | None, typer.Option("--tls-key", help="Its key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write the log as JSON.")]

serve = typer.Typer(name="serve", no_args_is_help=True, help="Run a service.")


@serve.callback()
def _services() -> None:
    """Run a service."""


@serve.command()
def urza(
    host: Host = None,
    port: Port = None,
    root: Annotated[Path | None, typer.Option("--root", help="Folder of the library.", metavar="DIR")] = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    as_json: AsJson = False,
) -> None:
    """Serve the artifact store until it is interrupted; settings come from [urza] and ESPER_URZA_..."""
    from esper.cli.stores import store_config
    from esper.services.rest.server import run
    from esper.services.urza.rest.application import create_app
    from esper.telemetry.logs import to_terminal

    config, tls = store_config(root=root, host=host, port=port), _tls(certificate, key)
    with to_terminal(json=as_json):
        run(lambda: create_app(config), config, tls=tls)


@serve.command()
def tezzeret(
    host: Host = None,
    port: Port = None,
    root: Annotated[Path | None, typer.Option("--root", help="Folder of the signing key.", metavar="DIR")] = None,
    urza_url: Annotated[str | None, typer.Option("--urza", envvar="URZA_URL", help="Address of the store.")] = None,
    num_workers: Annotated[
        int | None, typer.Option("--workers", envvar="NUM_WORKERS", help="Builds at a time.", min=1)
    ] = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    as_json: AsJson = False,
) -> None:
    """Forge what waits in the store until it is interrupted; settings come from [tezzeret] and ESPER_TEZZERET_..."""
    from esper.cli.stores import configured
    from esper.services.rest.server import run
    from esper.services.tezzeret.rest.application import create_app
    from esper.services.tezzeret.rest.config import TezzeretConfig
    from esper.telemetry.logs import to_terminal

    given = {"host": host, "port": port, "root": root, "urza_url": urza_url, "num_workers": num_workers}
    config, tls = configured(TezzeretConfig, "tezzeret", given), _tls(certificate, key)
    with to_terminal(json=as_json):
        run(lambda: create_app(config), config, tls=tls)


def _tls(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    from esper.errors import ConfigError

    if (certificate is None) != (key is None):
        raise ConfigError("HTTPS takes a certificate and its key", todo="give --tls-cert and --tls-key")
    return None if certificate is None or key is None else (certificate, key)
