"""A server in a process of its own, as long as a block lives: what all servers of tests have in common."""

import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from esper.errors import EsperError, StoreUnavailable


class Server(ABC):
    """Listens on loopback; killed, it can be started again on the same port, in the state in which it was killed.

    Args:
        folder: For its log, and what it keeps; it must exist.
        port: Where it listens; by default a port that is free.
    """

    title: ClassVar[str]
    """What people call it."""
    log_name: ClassVar[str] = "server.log"
    start_limit_s: ClassVar[float] = 30.0
    missing: ClassVar[type[EsperError]] = StoreUnavailable
    """What its users would say while it does not run."""

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder
        self.port = free_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its number.

        Raises:
            EsperError: If it does not run.
        """
        if self._process is None:
            raise self.missing(f"{self.title} does not run")
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of what it said."""
        path = self._log
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

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

    @abstractmethod
    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            NotFound: If it is not installed.
            EsperError: If it does not start; with what it said.
        """

    def kill(self) -> None:
        """End it at once, without a chance to write anything."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(timeout=self.start_limit_s)
            self._process = None

    def stop(self) -> int:
        """End it in good order, and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(timeout=self.start_limit_s)
        self._process = None
        return code

    def freeze(self) -> None:
        """Stop it where it stands; connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    @abstractmethod
    def _answers(self) -> bool:
        """Tell whether it answers by now; an `OSError` means no."""

    def _run(self, command: Sequence[str], **options: Any) -> None:
        """Start a command, and wait until it answers."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, **options)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.kill()
            raise

    def _wait_until_it_answers(self) -> None:
        ends_at = time.monotonic() + self.start_limit_s
        while time.monotonic() < ends_at and not self.has_ended:
            try:
                if self._answers():
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise self.missing(f"{self.title} does not start", why=self.log[-500:])

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    @property
    def _log(self) -> Path:
        return self.folder / self.log_name


def answers_http(url: str) -> bool:
    """Tell whether a server answers there, whatever it says."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
