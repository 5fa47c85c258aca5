"""What groups have lost because their streams were trimmed: counted, and said aloud."""

import time

from esper.telemetry.logs import get_logger

_SAY_EVERY_S = 1.0

_log = get_logger("oona.losses")


class Losses(dict[tuple[str, str], int]):
    """Messages by stream and group that the group lost; the log tells of them, at most once a second for each group."""

    def __init__(self) -> None:
        super().__init__()
        self._unsaid: dict[tuple[str, str], int] = {}
        self._say_at: dict[tuple[str, str], float] = {}

    def add(self, stream: str, group: str, count: int, *, why: str = "trimmed before the group saw it") -> None:
        """Count messages that are gone."""
        key, now = (stream, group), time.monotonic()
        self[key] = self.get(key, 0) + count
        self._unsaid[key] = self._unsaid.get(key, 0) + count
        if now >= self._say_at.get(key, 0.0):
            self._say_at[key] = now + _SAY_EVERY_S
            _log.error("messages_lost", stream=stream, group=group, count=self._unsaid.pop(key), why=why)
