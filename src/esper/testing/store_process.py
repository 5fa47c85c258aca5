"""``esper serve urza`` as a process that can be killed and started again on its port."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from esper.testing.server import Server, answers_http


class StoreProcess(Server):
    """The store's service, in a process of its own as long as the block lives.

    Args:
        folder: For its log and its library; it must exist.
        port: Where it listens, on loopback; by default a port that is free.
        settings: Variables of its environment.
    """

    title, log_name, start_limit_s = "the store", "service.log", 60.0

    def __init__(self, folder: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, port=port)
        self._settings = dict(settings or {})

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            StoreUnavailable: If it ends instead, or does not answer; with what it said.
        """
        command = [sys.executable, "-m", "esper.cli", "serve", "urza", "--port", str(self.port)]
        command += ["--root", str(self.folder / "library"), "--json"]
        self._run(command, cwd=self.folder, env=os.environ | self._settings)

    def _answers(self) -> bool:
        return answers_http(f"{self.url}/health")
