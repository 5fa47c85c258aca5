"""Real servers for tests, on ports and in folders of their own.

```python
@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
```
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from esper.errors import BusUnavailable, NotFound

_START_LIMIT_S = 10.0
_PROGRAMS = ("redis-server", "valkey-server")


class RedisServer:
    """A Redis (or Valkey) that lives as long as the block; it can be killed, frozen and started again on the same port.

    Every write is on the disk before it is answered, so that a kill loses nothing that was acknowledged.

    Args:
        folder: For its files; it must exist.
        options: More options of the program by name, such as ``{"tls-port": "6380"}``.
    """

    def __init__(self, folder: Path, options: Mapping[str, str] | None = None) -> None:
        self._folder, self._options = folder, dict(options or {})
        self._program = next((found for name in _PROGRAMS if (found := shutil.which(name))), None)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def is_installed(self) -> bool:
        """Whether there is such a program on this machine."""
        return self._program is not None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}"

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
            NotFound: If it is not installed.
            BusUnavailable: If it does not start.
        """
        if self._program is None:
            raise NotFound("there is no redis-server on this machine", todo="make servers, or install Redis 7 or newer")
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "appendonly": "yes",
            "save": '""',
        } | self._options
        command = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        with (self._folder / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._program, *command, "--appendfsync", "always"], stdout=output, stderr=output
            )
        self._wait_until_it_answers()

    def kill(self) -> None:
        """End it at once, without a chance to write anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=_START_LIMIT_S)
            self._process = None

    def freeze(self) -> None:
        """Stop it where it stands; connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def ask(self, command: str) -> bytes:
        """Send one inline command, such as ``FLUSHALL``, and return the beginning of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(65536)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _wait_until_it_answers(self) -> None:
        ends_at = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < ends_at:
            try:
                if self.ask("PING") == b"+PONG\r\n":
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise BusUnavailable("redis-server does not start", why=(self._folder / "server.log").read_text()[-500:])


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
