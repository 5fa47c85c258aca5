"""One member's seat in a consumer group on Redis: what it says to the server."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from esper.ports import Acknowledge
from esper.services.oona.redis_fields import lost_key_of
from esper.services.oona.redis_link import Command, GroupThere, Link
from esper.telemetry.logs import get_logger

log = get_logger("oona.redis")

_HOLD = """
local kept = {}
for n = 4, #ARGV, 2 do
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[n], ARGV[n], 1)
  if held[1] and held[1][2] == ARGV[2] then
    if redis.call('XRANGE', KEYS[1], ARGV[n], ARGV[n])[1] then
      redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[n], 'IDLE', ARGV[3], 'RETRYCOUNT', ARGV[n + 1], 'JUSTID')
    end
    kept[#kept + 1] = ARGV[n]
  end
end
return kept
"""
"""Sets idle time and tries of those messages that are still this member's, and returns them: a plain XCLAIM would take back
what another has taken over. One that was trimmed stays as it is: to claim it would take it out of the pending list, so that it
could neither be tried again nor be counted as lost."""

_LEAVE = """
local found = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if found.err then return end
for _, pairs in ipairs(found) do
  if pairs[2] == ARGV[2] and pairs[4] == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
end
"""
"""Takes a member's name from its group, unless it holds something: Redis would forget that with the name."""


@dataclass(frozen=True)
class Place:
    """Where a member stands.

    Attributes:
        stream: Name of the stream.
        key: Its key.
        group: Name of the group.
        name: The member's own name in it.
        begins: Where the group begins if it is new, as Redis writes it.
        leads: Whether this member is the one of its process that looks after the group: what it has lost, and who is gone.
        acknowledge: When a message counts as acknowledged.
    """

    stream: str
    key: str
    group: str
    name: str
    begins: str
    leads: bool
    acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING


Row = tuple[bytes, list[bytes]]
"""A place in the stream, and what lies there: names and values by turns."""


class Seat:
    """Commands of one member; all that it knows stands in Redis.

    Args:
        link: Where Redis is.
        place: Where the member stands.
        batch: Messages that are read at once.
        block_s: How long a read waits.
    """

    def __init__(self, link: Link, place: Place, *, batch: int, block_s: float) -> None:
        self._link, self.place, self._batch, self._block_s = link, place, batch, block_s
        self._at = (place.key, place.group)
        wait_ms = max(1, round(block_s * 1000))
        self._read: Command = (
            *("XREADGROUP", "GROUP", place.group, place.name, "COUNT", batch, "BLOCK", wait_ms),
            *(*(("NOACK",) if place.acknowledge == Acknowledge.ON_RECEIPT else ()), "STREAMS", place.key, ">"),
        )

    async def join(self, begins: str) -> None:
        """Make the group where it is missing, and its stream with it."""
        try:
            await self._link.ask("XGROUP", "CREATE", *self._at, begins, "MKSTREAM")
        except GroupThere:
            log.debug("group_joined", stream=self.place.stream, group=self.place.group)

    async def read(self, acks: Sequence[bytes]) -> list[Row]:
        """Acknowledge what was handled, and wait for new messages, both in one journey."""
        *_, found = await self._link.ask_all(
            [*([self.acknowledging(acks)] if acks else ()), self._read], wait_s=self._block_s
        )
        if not found:
            return []
        ((_, rows),) = cast("list[tuple[bytes, list[Row]]]", found)
        return rows

    def acknowledging(self, ids: Iterable[bytes]) -> Command:
        """Return the command that acknowledges messages."""
        return ("XACK", *self._at, *ids)

    async def acknowledge(self, ids: Iterable[bytes]) -> None:
        """Acknowledge messages."""
        await self._link.ask(*self.acknowledging(ids))

    async def oldest(self, before: bytes = b"") -> tuple[bytes, int] | None:
        """Return the place of the oldest message that this member's name holds, and how often it was handed out.

        Args:
            before: Where to stop looking; at the newest where it is left out.
        """
        end = b"(" + before if before else "+"
        rows = await self._link.ask("XPENDING", *self._at, "-", end, 1, self.place.name)
        found = cast("list[tuple[bytes, bytes, int, int]]", rows)
        return (found[0][0], found[0][3]) if found else None

    async def take(self, at: bytes, tries: int) -> list[bytes] | None:
        """Return what a message that this member's name holds says, and note its tries; None where it was trimmed meanwhile.

        Redis takes one that was trimmed out of the pending list when it is claimed.
        """
        rows = await self._link.ask("XCLAIM", *self._at, self.place.name, 0, at, "RETRYCOUNT", tries)
        found = cast("list[Row]", rows)
        return found[0][1] if found else None

    async def take_over(self, idle_ms: int, cursor: bytes) -> tuple[bytes, int, int]:
        """Make messages of members that showed no sign of life for so long this member's own.

        Returns:
            Where to go on, how many messages it took, and how many turned out to be trimmed.
        """
        answer = await self._link.ask(
            "XAUTOCLAIM", *self._at, self.place.name, idle_ms, cursor, "COUNT", self._batch, "JUSTID"
        )
        cursor, claimed, gone = cast("tuple[bytes, list[bytes], list[bytes]]", answer)
        return cursor, len(claimed), len(gone)

    async def hold(self, tries: Sequence[tuple[bytes, int]], *, idle_ms: int = 0) -> set[bytes]:
        """Set idle time and tries of messages, and return those that are this member's."""
        pairs = [value for pair in tries for value in pair]
        kept = await self._link.ask("EVAL", _HOLD, 1, *self._at, self.place.name, idle_ms, *pairs)
        return set(cast("list[bytes]", kept))

    async def leave(self) -> None:
        """Take the member's name from the group, unless it holds something that another is to take over."""
        await self._link.ask("EVAL", _LEAVE, 1, *self._at, self.place.name)

    async def lost(self) -> int:
        """Return how many messages the group has lost since there is a count of it, whoever trimmed them."""
        return int(cast("bytes | None", await self._link.ask("HGET", *self._lost_at)) or 0)

    async def lose(self, count: int) -> None:
        """Count messages that were trimmed while they were pending."""
        await self._link.ask("HINCRBY", *self._lost_at, count)

    @property
    def _lost_at(self) -> tuple[str, str]:
        return lost_key_of(self.place.key), self.place.group
