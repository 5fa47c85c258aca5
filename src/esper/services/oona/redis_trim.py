"""What Redis trimmed before a group saw it."""

from typing import TYPE_CHECKING, cast

from esper.services.oona.redis_fields import named, order

if TYPE_CHECKING:
    from esper.services.oona.redis_link import Link

_WATCH_EVERY_S = 1.0
"""How often trimming is looked at; it costs two commands."""


class TrimWatch:
    """Counts messages of one group that were trimmed before it saw them.

    Redis does not tell: it counts what a group was handed (``entries-read``) and goes on counting from there behind a gap. So
    a gap shows while the group stands before it, and afterwards as a difference once the group has caught up. What is lost
    while nobody watches is not known: the first look of a process takes things as they are.

    Args:
        key: Key of the stream.
        group: Name of the group.
    """

    def __init__(self, key: str, group: str) -> None:
        self._key, self._group = key, group
        self._due_at = 0.0
        self._shift: int | None = None
        self._seen = 0

    def is_due(self, now: float) -> bool:
        """Whether it is time to look; it is then due again a little later."""
        if now < self._due_at:
            return False
        self._due_at = now + _WATCH_EVERY_S
        return True

    async def lost(self, link: "Link") -> int:
        """Return how many more messages were lost since the last look."""
        stream, groups = await link.ask_all(
            [("XINFO", "STREAM", self._key), ("XINFO", "GROUPS", self._key)], at_once=True
        )
        for group in map(named, cast("list[object]", groups)):
            if group[b"name"] == self._group.encode():
                return self._more(named(stream), group)
        return 0

    def _more(self, stream: dict[bytes, object], group: dict[bytes, object]) -> int:
        if group[b"entries-read"] is None:  # a new group: its first read will begin with the right number
            self._shift = 0
            return 0
        behind = cast("int", stream[b"entries-added"]) - cast("int", group[b"entries-read"])
        if group[b"last-delivered-id"] == stream[b"last-generated-id"]:
            more = 0 if self._shift is None else max(0, behind - self._shift - self._seen)
            self._shift, self._seen = behind, 0
            return more
        first = cast("list[bytes] | None", stream[b"first-entry"])
        if first is not None and order(first[0]) < order(cast("bytes", group[b"last-delivered-id"])):
            return 0
        missed = max(0, behind - cast("int", stream[b"length"]) - (self._shift or 0))
        more, self._seen = max(0, missed - self._seen), max(missed, self._seen)
        return more
