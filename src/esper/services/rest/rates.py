"""How often each caller may ask."""

from collections import OrderedDict

from esper.ports import Clock


class Rates:
    """A bucket of permits for each caller, which fills up steadily.

    Args:
        per_s: Permits that come back per second; 0 sets no limit.
        burst: Permits that a bucket holds.
        clock: Its monotonic time is what counts.
        callers: Callers that are remembered; the ones that were quiet longest are forgotten first.
    """

    def __init__(self, per_s: float, burst: int, clock: Clock, *, callers: int = 10_000) -> None:
        self._per_s, self._burst, self._clock, self._callers = per_s, burst, clock, callers
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> float:
        """Take a permit; return 0, or after how many seconds there is one where there is none now."""
        if not self._per_s:
            return 0.0
        left, now = self._left(caller)
        missing = max(0.0, 1.0 - left)
        self._buckets[caller] = (left if missing else left - 1.0, now)
        self._buckets.move_to_end(caller)
        if len(self._buckets) > self._callers:
            self._buckets.popitem(last=False)
        return missing / self._per_s

    def wait_s(self, caller: str) -> float:
        """Return after how many seconds there is a permit, and take none."""
        return max(0.0, 1.0 - self._left(caller)[0]) / self._per_s if self._per_s else 0.0

    def _left(self, caller: str) -> tuple[float, float]:
        now = self._clock.monotonic_s()
        left, since = self._buckets.get(caller, (float(self._burst), now))
        return min(float(self._burst), left + (now - since) * self._per_s), now
