"""Holds calls back from a service that does not answer."""

import math
import threading
from enum import StrEnum

from esper.errors import ConfigError
from esper.ports import Clock
from esper.runtime.clock import SystemClock


class BreakerState(StrEnum):
    """What a breaker does with calls."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreaker:
    """Lets calls through until too many in a row have failed; then one, now and again, to see whether the service is back.

    Laws: while closed every call may proceed, and ``failure_threshold`` failures in a row open it. Open, no call may
    proceed for ``recovery_timeout`` seconds; then it is half open, and exactly one may: the probe. Its success closes the
    breaker, its failure opens it again. A probe that is never heard of again is given up after another
    ``recovery_timeout``. What a call that began in an earlier state reports late is not counted, where the caller gives
    the ticket that `admit` returned.

    A breaker may be shared by threads.

    Args:
        failure_threshold: Failures in a row that open it.
        recovery_timeout: Seconds until a probe is let through.
        clock: Its monotonic time is what counts.

    Raises:
        ConfigError: If a limit is not positive.
    """

    def __init__(self, failure_threshold: int = 5, recovery_timeout: float = 60, *, clock: Clock | None = None) -> None:
        if failure_threshold < 1 or not recovery_timeout > 0:
            raise ConfigError(
                "a circuit breaker cannot work so",
                why=f"failure_threshold={failure_threshold}, recovery_timeout={recovery_timeout}",
                todo="give at least one failure and more than no seconds",
            )
        self.failure_threshold, self.recovery_timeout = failure_threshold, recovery_timeout
        self.opened = 0
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._state = BreakerState.CLOSED
        self._ticket = 0
        self._failures = 0
        self._since = 0.0

    @property
    def state(self) -> BreakerState:
        """What it does with calls now: half open while a probe is under way, or may go."""
        with self._lock:
            if self._state is BreakerState.OPEN and self._waited():
                return BreakerState.HALF_OPEN
            return self._state

    def can_proceed(self) -> bool:
        """Say whether a call may be made now; a caller who is told so reports how it went."""
        return self.admit() is not None

    def admit(self) -> int | None:
        """Return a ticket for one call, to be handed back with its report, or None where it may not be made."""
        with self._lock:
            if self._state is BreakerState.CLOSED:
                return self._ticket
            if not self._waited():
                return None
            self._enter(BreakerState.HALF_OPEN)
            return self._ticket

    def retry_after_s(self) -> float:
        """Return the seconds after which another call may be let through; 0 where one may at once."""
        with self._lock:
            if self._state is BreakerState.CLOSED:
                return 0.0
            return max(0.0, self.recovery_timeout - (self._clock.monotonic_s() - self._since))

    def record_success(self, ticket: int | None = None) -> None:
        """Take note of a call that was answered, be it with a refusal.

        Args:
            ticket: What `admit` returned; without it the report counts for the present state.
        """
        with self._lock:
            if not self._is_current(ticket) or self._state is BreakerState.OPEN:
                return
            if self._state is BreakerState.HALF_OPEN:
                self._enter(BreakerState.CLOSED)
            self._failures = 0

    def record_failure(self, ticket: int | None = None) -> None:
        """Take note of a call that was not answered.

        Args:
            ticket: What `admit` returned; without it the report counts for the present state.
        """
        with self._lock:
            if not self._is_current(ticket) or self._state is BreakerState.OPEN:
                return
            self._failures += 1
            if self._state is BreakerState.HALF_OPEN or self._failures >= self.failure_threshold:
                self.opened += 1
                self._enter(BreakerState.OPEN)

    def withdraw(self, ticket: int) -> None:
        """Take note of a call that was cancelled by its caller: it tells nothing, and another probe may go at once."""
        with self._lock:
            if self._state is BreakerState.HALF_OPEN and ticket == self._ticket:
                self._enter(BreakerState.OPEN)
                self._since = -math.inf

    def _is_current(self, ticket: int | None) -> bool:
        return ticket is None or ticket == self._ticket

    def _waited(self) -> bool:
        return self._clock.monotonic_s() - self._since >= self.recovery_timeout

    def _enter(self, state: BreakerState) -> None:
        self._state, self._since = state, self._clock.monotonic_s()
        self._ticket += 1
        self._failures = 0


__all__ = ["BreakerState", "CircuitBreaker"]
