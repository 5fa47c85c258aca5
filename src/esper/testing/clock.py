"""A clock that stands still until it is told to go on."""


class ManualClock:
    """Implements `esper.ports.Clock`.

    Args:
        now_s: Where it starts, in seconds since the epoch.
    """

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s
        self._elapsed_s = 0.0

    def now_s(self) -> float:
        """Return seconds since the epoch, UTC."""
        return self._now_s + self._elapsed_s

    def monotonic_s(self) -> float:
        """Return seconds since the clock was made."""
        return self._elapsed_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._elapsed_s += seconds
