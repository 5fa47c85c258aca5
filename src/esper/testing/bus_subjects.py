"""The buses of this library as subjects of `esper.testing.bus_machine`."""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from esper.errors import BusUnavailable
from esper.ports import MessageBus
from esper.services.oona.desk import GroupFigures
from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.services.oona.memory_counts import StreamCounts
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_desk import RedisDesk
from esper.testing.bus_machine import STREAM, machine_codec
from esper.testing.bus_model import Traits

_RETRY_S, _CLOSE_S = 0.002, 0.02


class MemorySubject:
    """The bus of one process.

    Args:
        folder: For its journals; without one it keeps none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        journaled = folder is not None
        self.traits = Traits(survives=journaled, keeps_tries=False, trims_late=journaled, counts_received=True)
        self.tick_s, self.limit_s = 0.001 if journaled else 0.0, 5.0
        self._folder, self._number = folder, 0

    @property
    def _path(self) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._number}.journal"

    async def open(self) -> MessageBus:
        """Return a bus on the newest journal."""
        config = MemoryBusConfig(
            max_tries=self.traits.max_tries, retry_delay_s=_RETRY_S, close_limit_s=_CLOSE_S, publish_limit_s=1.0
        )
        journal = Journal(self._path) if self._folder is not None else None
        return MemoryBus(config, codec=machine_codec(self.traits.max_length), journal=journal)

    async def crash(self, bus: MessageBus) -> None:
        """Go on with what the disk holds now, as after the death of the process, whatever the old bus still writes."""
        if self._folder is not None:
            assert isinstance(bus, MemoryBus)
            assert bus._commits is not None
            await bus._commits.flush()  # the last hand-over is written a moment after it
            before = self._path
            self._number += 1
            shutil.copy(before, self._path)
            wal = before.with_name(before.name + "-wal")
            if wal.exists():
                shutil.copy(wal, self._path.with_name(self._path.name + "-wal"))
        await bus.close()

    async def depth(self, bus: MessageBus, group: str) -> int:
        """Return how many messages a group has not finished."""
        counts = self._counts(bus).groups[group]
        return counts.lag + counts.in_hand

    async def lost(self, bus: MessageBus, group: str) -> int:
        """Return how many messages a group has lost."""
        return self._counts(bus).groups[group].lost

    async def handled(self, bus: MessageBus, group: str) -> int | None:
        """Return nothing: what is acknowledged is out of `depth` at once."""
        return None

    async def held(self, bus: MessageBus) -> int:
        """Return how many messages the stream holds."""
        counts = counts_of(bus).get(STREAM)
        return counts.held if counts else 0

    async def end(self) -> None:
        """Do nothing: folders are the caller's."""

    def _counts(self, bus: MessageBus) -> StreamCounts:
        return counts_of(bus)[STREAM]


def counts_of(bus: MessageBus) -> dict[str, StreamCounts]:
    """Return what an in-process bus counts, also through one that is wrapped around it."""
    inner = getattr(bus, "inner", bus)
    assert isinstance(inner, MemoryBus)
    return inner.counts()


class RedisSubject:
    """The bus on Redis.

    Args:
        url: Where Redis is; it is emptied.
        ask: Sends one inline command to it.
    """

    def __init__(self, url: str, ask: Callable[[str], bytes]) -> None:
        self.traits = Traits(keeps_pending=False)
        self.tick_s, self.limit_s = 0.01, 15.0
        ask("FLUSHALL")
        self._config = RedisBusConfig(
            url=url,
            name="machine",
            batch=1,
            max_tries=self.traits.max_tries,
            retry_delay_s=_RETRY_S,
            claim_idle_s=2.0,
            block_s=0.02,
            close_limit_s=_CLOSE_S,
        )
        self._dead, self._lost_before = list[RedisBus](), dict[str, int]()
        self._desk = RedisDesk(self._config, codec=machine_codec(self.traits.max_length))

    async def open(self) -> MessageBus:
        """Return a bus under the same name as the one before."""
        bus = RedisBus(self._config, codec=machine_codec(self.traits.max_length))
        await bus.connect()
        self._lost_before = {name: figures.lost or 0 for name, figures in (await self._groups()).items()}
        return bus

    async def crash(self, bus: MessageBus) -> None:
        """Let the bus reach Redis no more."""
        assert isinstance(bus, RedisBus)

        def gone(*_: object, **__: object) -> Awaitable[object]:
            raise BusUnavailable("the process is dead")

        for name in ("ask", "ask_all"):
            setattr(bus._link, name, gone)
        self._dead.append(bus)

    async def depth(self, bus: MessageBus, group: str) -> int:
        """Return how many messages a group has not finished."""
        depth = (await self._groups())[group].depth
        assert depth is not None
        return depth

    async def lost(self, bus: MessageBus, group: str) -> int | None:
        """Return how many messages a group has lost, whichever bus trimmed them."""
        return ((await self._groups())[group].lost or 0) - self._lost_before.get(group, 0)

    async def handled(self, bus: MessageBus, group: str) -> int:
        """Return how many messages the members of a group in this process have handled and acknowledged."""
        assert isinstance(bus, RedisBus)
        counts = bus.counts().get((STREAM, group))
        return counts.handled if counts else 0

    async def held(self, bus: MessageBus) -> int:
        """Return how many messages the stream holds."""
        raise NotImplementedError

    async def end(self) -> None:
        """Close every connection."""
        for bus in self._dead:
            await bus.close()
        await self._desk.close()

    async def _groups(self) -> dict[str, GroupFigures]:
        for stream in await self._desk.figures():
            if stream.stream == STREAM:
                return {figures.group: figures for figures in stream.groups}
        return {}
