"""Random histories of a bus, each step held against a model: publish, take, acknowledge, fail, crash, claim, trim, restart.

```python
run_bus_machine(lambda: MySubject(), max_examples=30)
```

A history is a sequence of rules that hypothesis draws; where one breaks a law it is cut down to the shortest one that still does.
After every step the bus is waited for until it is still: nothing that could be handed out waits, and it counts as many unfinished
messages as the model.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Protocol, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from esper.contracts.envelope import DeadLetter
from esper.contracts.health import HealthBatch
from esper.contracts.topics import Topic
from esper.ports import Acknowledge, Delivery, MessageBus
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.testing.bus_model import BusModel, LawBroken, MemberModel, Traits

T = TypeVar("T")

STREAM = "machine.signals"
GROUPS = ("a", "b")
UNDERTAKERS = "undertakers"
_MOST_MEMBERS = 3


def machine_codec(max_length: int) -> Codec:
    """Return a codec for the stream of the machine, which keeps so many messages and gives way where a group is slow."""
    topic = Topic(STREAM, HealthBatch, 1, (), (), max_length=max_length, lossy=True)
    return Codec({STREAM: topic})


class Subject(Protocol):
    """A bus to be tried, with what holds its messages.

    Attributes:
        traits: Where it may differ from others.
        tick_s: How long to wait between two looks at it.
        limit_s: How long it may take to do what it must.
    """

    traits: Traits
    tick_s: float
    limit_s: float

    async def open(self) -> MessageBus:
        """Return a bus on what is held: nothing at first, and later what the one before has left."""
        ...

    async def crash(self, bus: MessageBus) -> None:
        """End the process of a bus as SIGKILL does; its subscriptions are cancelled afterwards."""
        ...

    async def depth(self, bus: MessageBus, group: str) -> int:
        """Return how many messages of the stream a group has not finished."""
        ...

    async def lost(self, bus: MessageBus, group: str) -> int | None:
        """Return how many messages of the stream a group has lost since the bus was opened, or None where it cannot tell."""
        ...

    async def handled(self, bus: MessageBus, group: str) -> int | None:
        """Return how many messages a group has handled and acknowledged since the bus was opened, or None if `depth` is exact."""
        ...

    async def held(self, bus: MessageBus) -> int:
        """Return how many messages the stream holds."""
        ...

    async def end(self) -> None:
        """Release everything."""
        ...


class Reading:
    """One member: its handler waits until it is told how to end."""

    def __init__(self, model: MemberModel) -> None:
        self.model = model
        self.inbox: list[Delivery] = []
        self.verdict: asyncio.Future[bool] | None = None
        self.task: asyncio.Task[None] | None = None

    async def __call__(self, delivery: Delivery) -> None:
        """Hold a message until it is settled."""
        self.inbox.append(delivery)
        self.verdict = asyncio.get_running_loop().create_future()
        if not await self.verdict:
            raise RuntimeError("planted failure")

    @property
    def waits(self) -> bool:
        """Whether its handler waits to be told."""
        return self.verdict is not None and not self.verdict.done()

    def settle(self, *, returns: bool) -> None:
        """Let the handler return, or raise."""
        assert self.verdict is not None
        self.verdict.set_result(returns)

    async def stop(self) -> None:
        """Cancel the subscription."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            if not self.task.cancelled() and self.task.exception() is not None:
                raise LawBroken("a subscription ended with an error") from self.task.exception()


class BusMachine(RuleBasedStateMachine):
    """Draws histories; a subclass says what bus they are tried on."""

    def subject(self) -> Subject:
        """Return a fresh bus to try."""
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._subject = self.subject()
        self._model = BusModel(self._subject.traits)
        self._readings: list[Reading] = []
        self._letters: list[tuple[str, str, int]] = []
        self._undertaker: asyncio.Task[None] | None = None

    @initialize()
    def begin(self) -> None:
        """Open the bus."""
        self._run(self._open())

    @rule(count=st.integers(1, 9))
    def publish(self, count: int) -> None:
        """Send messages; more than the stream keeps push the oldest out."""
        for _ in range(count):
            self._run(self._publish())

    @precondition(lambda self: len(self._readings) < _MOST_MEMBERS)
    @rule(
        group=st.sampled_from(GROUPS), start=st.sampled_from(["0", ">"]), acknowledge=st.sampled_from(list(Acknowledge))
    )
    def join(self, group: str, start: str, acknowledge: Acknowledge) -> None:
        """Let a member join a group."""
        self._run(self._join(group, start, acknowledge))

    @precondition(lambda self: self._busy())
    @rule(which=st.integers(0, _MOST_MEMBERS - 1), verdicts=st.lists(st.booleans(), min_size=1, max_size=5))
    def settle(self, which: int, verdicts: list[bool]) -> None:
        """Let the handler of a member return, or raise, message after message."""
        busy = self._busy()
        reading = busy[which % len(busy)]
        for returns in verdicts:
            if reading in self._busy():  # one that was trimmed may not come again
                self._run(self._settle(reading, returns=returns))

    @precondition(lambda self: self._readings)
    @rule(which=st.integers(0, _MOST_MEMBERS - 1))
    def lose_member(self, which: int) -> None:
        """Let a member die with what it holds."""
        self._run(self._leave(self._readings[which % len(self._readings)]))

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        """Close the bus, or kill it, and open it again."""
        self._run(self._restart(crash=crash))

    @invariant()
    def is_still_and_agrees(self) -> None:
        """Wait until nothing more happens, and compare."""
        if self._undertaker is not None:
            self._run(self._still())

    def teardown(self) -> None:
        """End the bus."""
        try:
            self._run(self._end())
        finally:
            self._runner.close()

    def _run(self, work: Coroutine[object, object, T]) -> T:
        return self._runner.run(work)

    def _busy(self) -> list[Reading]:
        self._taken_note()  # one that was trimmed may have come again since everything else was still
        return [reading for reading in self._readings if reading.model.hand is not None and reading.waits]

    async def _open(self) -> None:
        self._bus = await self._subject.open()
        work = self._bus.subscribe(STREAM + DEAD_SUFFIX, UNDERTAKERS, self._take_letter, start_from="0")
        self._undertaker = asyncio.ensure_future(work)

    async def _take_letter(self, delivery: Delivery) -> None:
        assert isinstance(delivery.body, DeadLetter)
        letter = delivery.body
        if delivery.redelivered and (letter.group, letter.envelope.id, letter.tries) in self._letters:
            return  # the acknowledgement was lost in a crash
        if letter.stream != STREAM or not letter.reason:
            raise LawBroken(f"a dead letter is not complete: {letter}")
        self._letters.append((letter.group, letter.envelope.id, letter.tries))

    async def _publish(self) -> None:
        batch = HealthBatch(run_id="run", step=len(self._model.log), signals=())
        self._model.published(await self._bus.publish(STREAM, batch, run_id="run"))
        await self._still()

    async def _join(self, group: str, start: str, acknowledge: Acknowledge) -> None:
        is_new = group not in self._model.groups
        reading = Reading(self._model.joined(group, start, acknowledge))
        work = self._bus.subscribe(STREAM, group, reading, start_from=start, acknowledge=acknowledge)
        reading.task = asyncio.ensure_future(work)
        self._readings.append(reading)
        if is_new:  # what is published before the group exists would not be seen by one that begins with new messages
            await self._until(lambda: self._missing(group))

    async def _missing(self, group: str) -> str:
        try:
            await self._subject.depth(self._bus, group)
        except KeyError:
            return f"there is no group {group}"
        return ""

    async def _settle(self, reading: Reading, *, returns: bool) -> None:
        (self._model.acknowledged if returns else self._model.failed)(reading.model)
        reading.settle(returns=returns)
        await self._still()

    async def _leave(self, reading: Reading) -> None:
        self._readings.remove(reading)
        self._model.ended(reading.model)
        await reading.stop()

    async def _restart(self, *, crash: bool) -> None:
        if crash:
            await self._subject.crash(self._bus)
        else:
            await self._bus.close()
        await self._stop_all()
        self._model.restarted()
        await self._open()
        if not self._model.traits.survives:
            self._letters.clear()
        if self._model.traits.trims_late:
            depths = {name: await self._subject.depth(self._bus, name) for name in self._model.groups}
            self._model.found(await self._subject.held(self._bus), depths)

    async def _stop_all(self) -> None:
        for reading in self._readings:
            with suppress(LawBroken):
                await reading.stop()
        self._readings.clear()
        if self._undertaker is not None:
            self._undertaker.cancel()
            await asyncio.wait([self._undertaker])

    async def _end(self) -> None:
        await self._stop_all()
        await self._bus.close()
        await self._subject.end()

    async def _still(self) -> None:
        """Return once the bus has done all that it must; object where it does more, or never does it."""
        await self._until(self._amiss)

    async def _amiss(self) -> str:
        return self._taken_note() or await self._difference()

    async def _until(self, amiss: Callable[[], Awaitable[str]]) -> None:
        """Wait until nothing is amiss any more."""
        what = ""
        try:
            async with asyncio.timeout(self._subject.limit_s):
                while True:
                    what = await amiss()
                    if not what:
                        return
                    await asyncio.sleep(self._subject.tick_s)
        except TimeoutError:
            raise LawBroken(f"the bus stands still, but {what}") from None

    def _taken_note(self) -> str:
        """Tell the model what was handed out, and return what must still be."""
        for reading in self._readings:
            if reading.task is not None and reading.task.done():
                raise LawBroken("a subscription has ended") from reading.task.exception()
            for delivery in reading.inbox:
                self._model.delivered(reading.model, delivery.id, redelivered=delivery.redelivered)
                if delivery.run_id != "run" or delivery.stream != STREAM:
                    raise LawBroken(f"a delivery says {delivery.run_id} and {delivery.stream}")
            reading.inbox.clear()
        self._model.bury_spent(self._letters)
        return self._model.due()

    async def _difference(self) -> str:
        """Return where the bus and the model differ."""
        for extra in self._letters:
            if self._letters.count(extra) > self._model.dead.count(extra):
                raise LawBroken(f"the dead letter {extra} should not be there")
        if len(self._letters) < len(self._model.dead):
            return f"of the dead letters {self._model.dead} there are only {self._letters}"
        for name, group in self._model.groups.items():
            depth, wanted = await self._subject.depth(self._bus, name), self._model.depth(name)
            if depth not in wanted:
                return f"group {name} has {depth} unfinished messages, not one of {wanted}"
            handled = await self._subject.handled(self._bus, name)
            if handled not in (None, group.handled):
                return f"group {name} has acknowledged {handled} messages in place of {group.handled}"
            lost = await self._subject.lost(self._bus, name)
            if lost is not None and not group.lost <= lost <= group.lost + group.maybe_lost:
                return f"group {name} counts {lost} lost messages in place of {group.lost} to {group.lost + group.maybe_lost}"
        return ""


def run_bus_machine(
    subject: Callable[[], Subject], *, max_examples: int = 30, steps: int = 20, shrink: bool = True
) -> None:
    """Try a bus on random histories; the same ones each time.

    Args:
        subject: Returns a fresh bus to try.
        max_examples: Histories.
        steps: Steps of the longest one.
        shrink: Whether a history that breaks a law is made shorter.

    Raises:
        LawBroken: If a law is broken; hypothesis prints the history.
    """

    class Machine(BusMachine):
        def subject(self) -> Subject:
            return subject()

    phases = (Phase.explicit, Phase.generate, *((Phase.shrink,) if shrink else ()))
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
