"""A bus on Redis, seen from outside."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import cast

import msgspec

from esper.contracts.envelope import DeadLetter, Envelope
from esper.errors import ContractError
from esper.ports import BusHealth
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.desk import GroupFigures, Letter, Passing, StreamFigures, check_stream, message_of
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_fields import UNREADABLE, from_fields, key_of, lost_key_of, named, order, to_fields
from esper.services.oona.redis_link import Link

_PAGE = 500
"""Entries that one command looks at, so that it holds up nobody."""
_PAGES = 20
"""Pages that are counted from either end before a figure is called unknown; a stream of 10,000 is counted whole."""
_WAIT_S = 1.0

_COUNT = """
local found = redis.call(ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'COUNT', ARGV[4])
return {#found, #found > 0 and found[#found][1] or ''}
"""
"""Counts a page of entries without sending them."""

_MOVE = """
if redis.call('XDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do redis.call('XACK', KEYS[1], group[2], ARGV[1]) end
if #ARGV > 1 then redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2)) end
return 1
"""
"""Takes a letter away, also from readers that hold it, and appends what it holds to its stream where that is given."""

Row = tuple[bytes, list[bytes]]


class RedisDesk:
    """Implements `esper.services.oona.desk.Desk` on Redis.

    A group's lag is counted by the places of messages. Redis' own ``lag`` is not used: it is nil where a group was made in the
    middle of a stream, and stays too large once a message was trimmed that the group had not seen.

    Args:
        config: Where Redis is.
        codec: Knows the declared streams.
    """

    def __init__(self, config: RedisBusConfig, *, codec: Codec | None = None) -> None:
        self._codec = codec or Codec()
        self._bus = RedisBus(config, codec=self._codec)
        self._link = Link(config.url, config.reply_limit_s, password_file=config.password_file)

    async def figures(self) -> list[StreamFigures]:
        """Return what every stream holds, by name; see `Desk`."""
        found = {name: await self._figures(name) for name in await self._bus.streams()}
        letters = {name: figures.held for name, figures in found.items() if name.endswith(DEAD_SUFFIX)}
        return [replace(figures, dead=letters.get(name + DEAD_SUFFIX, 0)) for name, figures in found.items()]

    async def health(self) -> BusHealth:
        """Tell whether Redis takes messages; see `Desk`."""
        return await self._bus.health()

    async def letters(self, stream: str | None = None) -> list[Letter]:
        """Return dead letters; see `Desk`."""
        graves = [stream + DEAD_SUFFIX] if stream else await self._bus.streams()
        return [
            self._letter(grave, row)
            for grave in graves
            if grave.endswith(DEAD_SUFFIX)
            for row in [row async for row in self._rows(grave)]
        ]

    async def replay(self, letter: Letter) -> bool:
        """Put a message back; see `Desk`."""
        content = message_of(letter)
        return await self._moved(letter, content.stream, _as_sent(content.envelope))

    async def drop(self, letter: Letter) -> bool:
        """Take a letter away; see `Desk`."""
        return await self._moved(letter, letter.grave, [])

    async def follow(self, stream: str, *, last: int, wait: bool) -> AsyncIterator[Passing]:
        """Yield messages; see `Desk`."""
        check_stream(stream, await self._bus.streams())
        key = key_of(stream)
        at = await self._newest(key)
        if last:
            for row in reversed(await self._range("XREVRANGE", key, at, "-", last)):
                yield _passing(row)
        while wait:
            block_ms = round(_WAIT_S * 1000)
            found = await self._link.ask("XREAD", "COUNT", _PAGE, "BLOCK", block_ms, "STREAMS", key, at, wait_s=_WAIT_S)
            for _, rows in cast("list[tuple[bytes, list[Row]]]", found or []):
                for row in rows:
                    at = row[0]
                    yield _passing(row)

    async def close(self) -> None:
        """Close every connection."""
        await self._bus.close()
        await self._link.close()

    async def _figures(self, name: str) -> StreamFigures:
        key = key_of(name)
        asked = [("XINFO", "STREAM", key), ("XINFO", "GROUPS", key), ("HGETALL", lost_key_of(key)), ("TIME",)]
        stream, groups, losses, now = await self._link.ask_all(asked)
        about, now_ms = named(stream), _milliseconds(now)
        held, published = cast("int", about[b"length"]), cast("int", about[b"entries-added"])
        lost, rows = named(losses), [named(group) for group in cast("list[object]", groups)]
        seen = [
            await self._group(key, about, row, lost.get(cast("bytes", row[b"name"])), now_ms=now_ms) for row in rows
        ]
        return StreamFigures(name, held, published, published - held, 0, tuple(sorted(seen, key=lambda g: g.group)))

    async def _group(
        self, key: str, stream: dict[bytes, object], group: dict[bytes, object], lost: object, *, now_ms: int
    ) -> GroupFigures:
        name, pending = cast("bytes", group[b"name"]).decode(), cast("int", group[b"pending"])
        oldest, redelivered = await self._pending(key, name) if pending else (None, 0)
        return GroupFigures(
            group=name,
            lag=await self._lag(key, stream, cast("bytes", group[b"last-delivered-id"])),
            pending=pending,
            oldest_pending_s=None if oldest is None else max(0, now_ms - order(oldest)[0]) / 1000,
            redelivered=redelivered,
            lost=int(cast("bytes | None", lost) or 0),
        )

    async def _pending(self, key: str, group: str) -> tuple[bytes | None, int | None]:
        """Return the place of the oldest pending message, and how many were handed out more than once."""
        oldest: bytes | None = None
        redelivered, begin = 0, b"-"
        for _ in range(2 * _PAGES):
            rows = cast(
                "list[tuple[bytes, bytes, int, int]]",
                await self._link.ask("XPENDING", key, group, begin, "+", _PAGE),
            )
            oldest = rows[0][0] if oldest is None and rows else oldest
            redelivered += sum(tries > 1 for _, _, _, tries in rows)
            if len(rows) < _PAGE:
                return oldest, redelivered
            begin = b"(" + rows[-1][0]
        return oldest, None

    async def _lag(self, key: str, stream: dict[bytes, object], delivered: bytes) -> int | None:
        """Return how many messages lie behind the last one that a group was handed, or None where those are too many to count."""
        held = cast("int", stream[b"length"])
        first = cast("Row | None", stream[b"first-entry"])
        if first is None or order(delivered) >= order(cast("bytes", stream[b"last-generated-id"])):
            return 0
        if order(delivered) < order(first[0]):
            return held
        ahead, behind = _Counted(b"(" + delivered), _Counted(delivered)
        for _ in range(_PAGES):
            if await self._counted(ahead, "XRANGE", key, "+"):
                return ahead.count
            if await self._counted(behind, "XREVRANGE", key, "-"):
                return max(0, held - behind.count)
        return None

    async def _counted(self, counted: "_Counted", command: str, key: str, end: str) -> bool:
        """Count one page more, and tell whether it was the last one."""
        answer = await self._link.ask("EVAL", _COUNT, 1, key, command, counted.begin, end, _PAGE)
        count, at = cast("tuple[int, bytes]", answer)
        counted.count += count
        counted.begin = b"(" + at
        return count < _PAGE

    async def _moved(self, letter: Letter, stream: str, pairs: Sequence[str | bytes]) -> bool:
        keys = key_of(letter.grave), key_of(stream)
        return bool(await self._link.ask("EVAL", _MOVE, 2, *keys, letter.place, *pairs))

    async def _rows(self, stream: str) -> AsyncIterator[Row]:
        begin: bytes | str = "-"
        while rows := await self._range("XRANGE", key_of(stream), begin, "+", _PAGE):
            for row in rows:
                yield row
            begin = b"(" + rows[-1][0]

    async def _range(self, command: str, key: str, begin: bytes | str, end: str, count: int) -> list[Row]:
        return cast("list[Row]", await self._link.ask(command, key, begin, end, "COUNT", count))

    async def _newest(self, key: str) -> bytes:
        return cast("bytes", named(await self._link.ask("XINFO", "STREAM", key))[b"last-generated-id"])

    def _letter(self, grave: str, row: Row) -> Letter:
        place = row[0].decode()
        try:
            envelope = from_fields(row[0], row[1])
            content = self._codec.open(envelope)
        except ContractError as error:
            return Letter(grave, place, None, fault=str(error))
        if not isinstance(content, DeadLetter):
            return Letter(grave, place, None, envelope.sent_at, f"it is a {envelope.type}, and no dead letter")
        return Letter(grave, place, content, envelope.sent_at)


class _Counted:
    """How far a count has come."""

    def __init__(self, begin: bytes) -> None:
        self.begin, self.count = begin, 0


def _milliseconds(now: object) -> int:
    seconds, micros = cast("tuple[object, object]", now)
    return int(cast("int", seconds)) * 1000 + int(cast("int", micros)) // 1000


def _as_sent(envelope: Envelope) -> list[str | bytes]:
    """Return the fields of a message as they lay in its stream, those of an entry that was no message included."""
    if envelope.type == UNREADABLE:
        return list(msgspec.msgpack.decode(envelope.body, type=list[bytes]))
    return to_fields(envelope)


def _passing(row: Row) -> Passing:
    place = row[0].decode()
    try:
        return Passing(place, from_fields(*row))
    except ContractError as error:
        return Passing(place, None, error.why)
