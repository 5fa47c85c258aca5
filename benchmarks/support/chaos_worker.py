"""A process of a chaos schedule: ``python -m benchmarks.support.chaos_worker SPEC``.

It publishes numbered messages, or handles them, or both; it notes what happens on standard output, and its effects are rows of a
SQLite file. A file named ``quiet`` beside them ends every writer, one named after the process ends it in good order.
"""

import asyncio
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.support.chaos_ledger import Ledger
from benchmarks.support.chaos_plan import Flaw
from esper.contracts.envelope import DeadLetter
from esper.contracts.ids import MessageId, new_message_id
from esper.errors import BusUnavailable
from esper.ports import Delivery, DeliveryHandler
from esper.services.oona.codec import DEAD_SUFFIX, Codec
from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.history import History, Kind, Message

STREAM = "chaos.numbers"
POISON_EVERY = 50
"""Each so-manyth message of a writer fails for ever."""
QUIET = "quiet"
UNDERTAKERS = "undertakers"
_MOST = 500
"""Messages of a writer, so that what waited for a reader that was gone long is worked off in seconds."""
_LISTEN_S = 0.05
_LATE_S = 0.6
"""How long after its handler the effect of an early reader follows."""
_RESTS_EVERY, _REST_S = 20, 0.2
"""How often and how long a forgetful reader rests between effect and acknowledgement, so that a kill finds it there."""


@dataclass(frozen=True)
class Spec:
    """What a process does.

    Attributes:
        process: Its name; a restarted one has another.
        folder: Where journal and effects are.
        seed: Of its pauses and failures.
        url: Of Redis; empty for the journaled bus.
        member: Its name on the bus; a restarted one may keep it.
        writers: How many writers it has.
        readers: Group and name of each reader.
        flaw: What is wrong with its readers.
        batch: Messages read at once.
        at_once: Messages that a writer publishes at once.
        longest: Messages that a stream of the journaled bus keeps.
        pause_s: How long a writer rests between messages, at most.
        work_s: How long a handler takes, at most.
        fails: How often a handler fails.
        tries: How often a writer publishes a message that was refused.
    """

    process: str
    folder: str
    seed: int
    url: str = ""
    member: str = ""
    writers: int = 0
    readers: list[tuple[str, str]] = field(default_factory=list)
    flaw: str = Flaw.NONE.value
    batch: int = 8
    at_once: int = 1
    longest: int = 1000
    pause_s: float = 0.01
    work_s: float = 0.0
    fails: float = 0.0
    tries: int = 1


class Worker:
    """Writers and readers on one bus."""

    def __init__(self, spec: Spec, history: History) -> None:
        self.spec, self.history = spec, history
        self.dice = Random(f"{spec.seed}.{spec.process}")
        self.bus = _bus(spec)
        self.quiet, self.stop = asyncio.Event(), asyncio.Event()
        self.ledger = Ledger(Path(spec.folder), remembers=spec.flaw != Flaw.FORGETFUL)
        self.late: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Work until it is told to end."""
        async with asyncio.TaskGroup() as tasks:
            for n in range(self.spec.writers):
                tasks.create_task(self.write(f"{self.spec.process}.{n}"))
            for group, member in self.spec.readers:
                tasks.create_task(self.read(group, member))
            await self.listen()
            await self.bus.close()
        await self.ledger.close()
        for group, member in self.spec.readers:
            self.history.note(Kind.LEFT, Message(STREAM, "", -1), group=group, member=member)

    async def listen(self) -> None:
        """Return when it is told to end."""
        folder = Path(self.spec.folder)
        while not self.stop.is_set():
            await asyncio.sleep(_LISTEN_S)
            if (folder / self.spec.process).exists():
                self.stop.set()
            if self.stop.is_set() or (folder / QUIET).exists():
                self.quiet.set()

    async def write(self, writer: str) -> None:
        """Publish numbered messages, one after the other."""
        number, at_once = 0, self.spec.at_once
        while not self.quiet.is_set() and number < _MOST:
            messages = [Message(STREAM, writer, number + n) for n in range(at_once)]
            if at_once == 1:
                await self.send(messages[0], new_message_id())
            else:
                await self.send_all(messages)
            number += at_once
            await asyncio.sleep(self.dice.uniform(0.0, self.spec.pause_s * at_once))

    async def send(self, message: Message, id: MessageId) -> None:
        """Publish one message, again under its id where that is refused."""
        self.history.note(Kind.SENT, message, id=id)
        for _ in range(self.spec.tries):
            try:
                await self.bus.publish(STREAM, body_of(message), message_id=id)
            except BusUnavailable:
                self.history.note(Kind.REFUSED, message, id=id)
            else:
                self.history.note(Kind.ACKNOWLEDGED, message, id=id)
                return

    async def send_all(self, messages: list[Message]) -> None:
        """Publish messages at once."""
        for message in messages:
            self.history.note(Kind.SENT, message)
        try:
            ids = await self.bus.publish_many(STREAM, [body_of(message) for message in messages])
        except BusUnavailable:
            for message in messages:
                self.history.note(Kind.REFUSED, message)
        else:
            for message, id in zip(messages, ids, strict=True):
                self.history.note(Kind.ACKNOWLEDGED, message, id=id)

    async def read(self, group: str, member: str) -> None:
        """Be a member of a group; one whose subscription ends because the journal cannot be written begins again."""
        stream, handle = STREAM, self.reader(group, member)
        if group == UNDERTAKERS:
            stream, handle = STREAM + DEAD_SUFFIX, self.bury
        while not self.stop.is_set():
            self.history.note(Kind.JOINED, Message(stream, "", -1), group=group, member=member)
            try:
                await self.bus.subscribe(stream, group, handle, start_from="0")
            except BusUnavailable:
                await asyncio.sleep(0.02)

    def reader(self, group: str, member: str) -> DeliveryHandler:
        """Return the handler of a member."""

        async def handle(delivery: Delivery) -> None:
            message = message_in(delivery.body)

            def note(kind: Kind) -> None:
                self.history.note(
                    kind, message, id=delivery.id, group=group, member=member, redelivered=delivery.redelivered
                )

            note(Kind.HANDED)
            try:
                await self.work(group, message, delivery)
            except Exception:
                note(Kind.FAILED)
                raise
            note(Kind.HANDLED)

        return handle

    async def work(self, group: str, message: Message, delivery: Delivery) -> None:
        """Have an effect, or fail."""
        if message.number % POISON_EVERY == POISON_EVERY - 1 or self.dice.random() < self.spec.fails:
            raise ValueError("planted")
        await asyncio.sleep(self.dice.uniform(0.0, self.spec.work_s))
        if self.spec.flaw == Flaw.EARLY:
            task = asyncio.create_task(self.follow(group, message, delivery))
            self.late.add(task)
            task.add_done_callback(self.late.discard)
            return
        await self.ledger.write(group, message, delivery)
        if self.spec.flaw == Flaw.FORGETFUL and message.number % _RESTS_EVERY == 0:
            await asyncio.sleep(_REST_S)

    async def follow(self, group: str, message: Message, delivery: Delivery) -> None:
        """Have the effect when the message is acknowledged already."""
        await asyncio.sleep(_LATE_S)
        await self.ledger.write(group, message, delivery)

    async def bury(self, delivery: Delivery) -> None:
        """Note that a dead letter stands for a message."""
        letter = delivery.body
        assert isinstance(letter, DeadLetter)
        message = message_in(Codec().open(letter.envelope))
        self.history.note(Kind.BURIED, message, id=letter.envelope.id, group=letter.group)


def body_of(message: Message) -> dict[str, object]:
    """Return what is published."""
    return {"writer": message.writer, "number": message.number, "fill": fill(message)}


def fill(message: Message) -> str:
    """Return a text that only this message has."""
    return f"{message.writer}/{message.number} " * (1 + message.number * 37 % 100)


def message_in(body: object) -> Message:
    """Return the name of the message in a body, or one that nobody sent where its content is not its own."""
    if isinstance(body, dict):
        message = Message(STREAM, str(body.get("writer")), int(str(body.get("number"))))
        if body.get("fill") == fill(message):
            return message
    return Message(STREAM, "?", -1)


def _bus(spec: Spec) -> RedisBus | MemoryBus:
    if not spec.url:
        config = MemoryBusConfig(max_length=spec.longest, retry_delay_s=0.01, publish_limit_s=2.0, close_limit_s=2.0)
        return MemoryBus(config, journal=Journal(Path(spec.folder) / "bus.journal"))
    return RedisBus(
        RedisBusConfig(
            url=spec.url, name=spec.member, batch=spec.batch, max_tries=5, retry_delay_s=0.01,
            claim_idle_s=0.6, block_s=0.1, reply_limit_s=0.4, publish_limit_s=2.0, close_limit_s=2.0,
        )
    )  # fmt: skip


async def main(spec: Spec) -> None:
    """Do what a spec says."""
    await Worker(spec, History(1, spec.process)).run()


if __name__ == "__main__":
    asyncio.run(main(Spec(**json.loads(sys.argv[1]))))
