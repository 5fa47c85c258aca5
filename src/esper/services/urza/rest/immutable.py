"""Answers that cannot change, kept in memory up to a number of bytes."""

from collections import OrderedDict


class Immutable:
    """A cache by key, bounded in bytes; what was used longest ago goes first.

    Args:
        most_bytes: What all values together may take.
    """

    def __init__(self, most_bytes: int) -> None:
        self.hits = self.misses = self.size_bytes = 0
        self._most_bytes = most_bytes
        self._values: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        value = self._values.get(key)
        if value is None:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a value; one that would take more than an eighth of the room is not kept."""
        if key in self._values or len(value) * 8 > self._most_bytes:
            return
        self._values[key] = value
        self.size_bytes += len(value)
        while self.size_bytes > self._most_bytes:
            _, dropped = self._values.popitem(last=False)
            self.size_bytes -= len(dropped)
