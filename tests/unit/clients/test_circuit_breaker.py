"""The breaker against a model of it, and its one probe against a crowd."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from esper.errors import ConfigError
from esper.services.clients.circuit_breaker import BreakerState, CircuitBreaker
from esper.testing.clock import ManualClock

THRESHOLD, TIMEOUT_S = 3, 10.0


class Model:
    """What a breaker must do, told once more in the plainest way: a list of what happened since it last closed."""

    def __init__(self) -> None:
        self.streak = 0
        self.opened_at: float | None = None
        self.probe_at: float | None = None
        self.epoch = 0

    def admits(self, now: float) -> bool:
        if self.opened_at is None:
            return True
        return now - (self.opened_at if self.probe_at is None else self.probe_at) >= TIMEOUT_S

    def admitted(self, now: float) -> int:
        if self.opened_at is not None:
            self.probe_at = now
            self.epoch += 1
        return self.epoch

    def succeeded(self) -> None:
        if self.probe_at is not None:
            self.opened_at = self.probe_at = None
            self.epoch += 1
        if self.opened_at is None:
            self.streak = 0

    def failed(self, now: float) -> None:
        if self.opened_at is not None and self.probe_at is None:
            return
        self.streak += 1
        if self.probe_at is not None or self.streak >= THRESHOLD:
            self.opened_at, self.probe_at, self.streak = now, None, 0
            self.epoch += 1


class BreakerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(THRESHOLD, TIMEOUT_S, clock=self.clock)
        self.model = Model()
        self.calls: list[tuple[int, int]] = []

    @property
    def now(self) -> float:
        return self.clock.monotonic_s()

    @rule(seconds=st.sampled_from([0.0, 0.1, 5.0, 9.999, 10.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def somebody_asks(self) -> None:
        expected = self.model.admits(self.now)
        ticket = self.breaker.admit()
        assert (ticket is not None) == expected
        if ticket is not None:
            self.calls.append((ticket, self.model.admitted(self.now)))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), success=st.booleans())
    def a_call_ends(self, data: st.DataObject, success: bool) -> None:
        ticket, epoch = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        (self.breaker.record_success if success else self.breaker.record_failure)(ticket)
        if epoch == self.model.epoch:
            if success:
                self.model.succeeded()
            else:
                self.model.failed(self.now)

    @rule(success=st.booleans())
    def a_call_without_a_ticket_ends(self, success: bool) -> None:
        (self.breaker.record_success if success else self.breaker.record_failure)()
        if success:
            self.model.succeeded()
        else:
            self.model.failed(self.now)

    @precondition(lambda self: self.calls)
    @rule(data=st.data())
    def a_call_is_cancelled(self, data: st.DataObject) -> None:
        ticket, epoch = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        self.breaker.withdraw(ticket)
        if epoch == self.model.epoch and self.model.probe_at is not None:
            self.model.opened_at, self.model.probe_at = -TIMEOUT_S - 1, None
            self.model.epoch += 1

    @invariant()
    def they_agree(self) -> None:
        closed = self.breaker.state is BreakerState.CLOSED
        assert closed == (self.model.opened_at is None)
        assert (self.breaker.retry_after_s() == 0) == self.model.admits(self.now)


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAgainstTheModel = BreakerMachine.TestCase


def opened(clock: ManualClock) -> CircuitBreaker:
    breaker = CircuitBreaker(5, 60, clock=clock)
    for _ in range(5):
        assert breaker.can_proceed()
        breaker.record_failure()
    assert not breaker.can_proceed()
    return breaker


def test_half_open_admits_exactly_one_of_fifty_at_once() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    for _ in range(20):
        clock.advance(60)
        start = threading.Barrier(50)

        def asks(start: threading.Barrier = start) -> bool:
            start.wait()
            return breaker.can_proceed()

        with ThreadPoolExecutor(50) as crowd:
            assert sum(crowd.map(lambda _: asks(), range(50))) == 1
        breaker.record_failure()


def test_a_breaker_without_its_lock_is_noticed() -> None:
    """The crowd above would see two probes: the fault is planted here, step by step, without luck."""
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(60)

    both = threading.Barrier(2)
    waited = breaker._waited

    def looks_with_another() -> bool:
        seen = waited()
        both.wait(timeout=5)
        return seen

    breaker._waited = looks_with_another  # type: ignore[method-assign]

    class NoLock:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    breaker._lock = NoLock()  # type: ignore[assignment]
    with ThreadPoolExecutor(2) as crowd:
        assert sum(crowd.map(lambda _: breaker.can_proceed(), range(2))) == 2


def test_a_late_answer_from_before_the_outage_closes_nothing() -> None:
    clock = ManualClock()
    breaker = CircuitBreaker(1, 60, clock=clock)
    straggler, failing = breaker.admit(), breaker.admit()
    breaker.record_failure(failing)
    clock.advance(60)
    assert breaker.admit() is not None
    breaker.record_success(straggler)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.admit() is None


def test_a_probe_that_is_never_heard_of_again_is_given_up() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(60)
    assert breaker.can_proceed()
    clock.advance(59)
    assert not breaker.can_proceed()
    clock.advance(1)
    assert breaker.can_proceed()


@pytest.mark.parametrize(("threshold", "timeout"), [(0, 60), (5, 0), (5, -1), (5, float("nan"))])
def test_limits_that_make_no_sense_are_refused(threshold: int, timeout: float) -> None:
    with pytest.raises(ConfigError):
        CircuitBreaker(threshold, timeout)
