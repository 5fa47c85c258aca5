"""Runs the service: one process, one event loop, limits on connections as well as on requests."""

import asyncio
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from esper.errors import ConfigError
from esper.services.rest.config import RestConfig
from esper.services.rest.protocol import patient
from esper.services.rest.state import Parts
from esper.telemetry.logs import get_logger

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = get_logger("rest")


class RestServer(uvicorn.Server):
    """A server that says that it is not ready for a while before it stops accepting connections.

    Args:
        app: The application.
        config: Its settings.
        tls: Certificate and key, where it speaks HTTPS itself.
    """

    def __init__(self, app: "FastAPI", config: RestConfig, *, tls: tuple[Path, Path] | None = None) -> None:
        self._app, self._config = app, config
        super().__init__(_uvicorn(app, config, tls))

    @property
    def port(self) -> int:
        """Port that it listens on, once it has started."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop: first say so, then accept no more connections, then end what is in hand."""
        parts: Parts | None = getattr(self._app.state, "serving", None)
        if parts is None or parts.draining or not self._config.drain_s:
            self._end(sig, frame)
            return
        parts.draining = True
        _log.info("draining", seconds=self._config.drain_s)
        asyncio.get_running_loop().call_later(self._config.drain_s, self._end, sig, frame)

    def _end(self, sig: int, frame: FrameType | None) -> None:
        if (
            sig == signal.SIGTERM
        ):  # uvicorn would raise it again at the end: whoever asked for an end would be told of a death
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)


def _uvicorn(app: "FastAPI", config: RestConfig, tls: tuple[Path, Path] | None) -> uvicorn.Config:
    options: dict[str, Any] = {}
    if tls is not None:
        options = {"ssl_certfile": str(tls[0]), "ssl_keyfile": str(tls[1]), "ssl_version": ssl.PROTOCOL_TLS_SERVER}
    return uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        loop="uvloop",
        http=patient(config),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=config.max_concurrency,
        timeout_keep_alive=config.keep_alive_s,
        timeout_graceful_shutdown=config.close_limit_s,
        **options,
    )


def run(make: Callable[[], "FastAPI"], config: RestConfig, *, tls: tuple[Path, Path] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        make: Makes the application.
        config: Its settings.
        tls: Certificate and key.

    Raises:
        ConfigError: If it cannot listen there, or does not start.
    """
    server = RestServer(make(), config, tls=tls)
    try:
        server.run()
    except OSError as error:
        raise ConfigError(f"cannot listen on {config.host}:{config.port}", why=str(error), code="ESP-2570") from error
    if not server.started:
        raise ConfigError("the service did not start", why="the reason stands above", code="ESP-2571")
