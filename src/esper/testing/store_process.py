"""``esper serve urza`` as a process that can be killed and started again on its port."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from esper.errors import StoreUnavailable
from esper.testing.servers import free_port

_LIMIT_S = 60.0


class StoreProcess:
    """The store's service, in a process of its own as long as the block lives.

    Args:
        folder: For its log and its library; it must exist.
        port: Where it listens, on loopback; by default a port that is free.
        settings: Variables of its environment.
    """

    def __init__(self, folder: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None) -> None:
        self._folder, self._settings = folder, dict(settings or {})
        self.port = free_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of what it said."""
        return (self._folder / "service.log").read_text(errors="replace")[-3000:]

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            StoreUnavailable: If it ends instead, or does not answer; with what it said.
        """
        command = [sys.executable, "-m", "esper.cli", "serve", "urza", "--port", str(self.port)]
        command += ["--root", str(self._folder / "library"), "--json"]
        with (self._folder / "service.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=os.environ | self._settings, stdout=log, stderr=log
            )
        ends_at = time.monotonic() + _LIMIT_S
        while time.monotonic() < ends_at and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except urllib.error.HTTPError:
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        self.kill()
        raise StoreUnavailable("the store does not start", why=self.log)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_LIMIT_S)
            self._process = None

    def stop(self) -> int:
        """End it in good order, and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(_LIMIT_S)
        self._process = None
        return code
