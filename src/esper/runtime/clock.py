"""The real clock."""

import time


class SystemClock:
    """Time as the machine tells it; implements `esper.ports.Clock`."""

    def now_s(self) -> float:
        """Return seconds since the epoch, UTC."""
        return time.time()

    def monotonic_s(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()
