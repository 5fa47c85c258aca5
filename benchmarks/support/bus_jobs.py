"""One job for a bus on Redis, done by Esper, by bare redis-py and by FastStream: a sender and a reader, each a process.

The job: every message is sent, read by a member of a group, decoded and acknowledged, and its reader is told what Esper's is:
type and version of the contract, the message's id, when it was sent, its run, and the body. Esper's header is of fields that
people can read; redis-py sends all of it packed as one field, the cheapest that it could. FastStream has a header of its own, and
the body alone is sent with it. All three send and read as many at once, encode with msgspec, and run on the same event loop and
the same parser (hiredis).
"""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import TypeAlias

import msgspec
from faststream.redis import RedisBroker, StreamSub
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from benchmarks.support.report import ROOT
from esper.contracts.envelope import Envelope
from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.ids import MessageId
from esper.contracts.topics import HEALTH, Message
from esper.ports import Delivery
from esper.services.oona.micro_batch import MicroBatchConfig, MicroBatcher
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig

NUMBERS = "benchmark.numbers"
SIGNALS = 100
"""Health signals in one message: the places of a middling model."""
AT_ONCE = 256
"""Messages in one command, or one read."""
BLOCK_S = 0.01
GROUP, MEMBER = "readers", "reader"
LIMIT_S = 900.0
LIBRARIES = ("esper", "redis_py", "faststream")

_encode = msgspec.msgpack.Encoder().encode
_envelope_of = msgspec.msgpack.Decoder(Envelope).decode
_number_of = msgspec.msgpack.Decoder(dict[str, int]).decode
_health_of = msgspec.msgpack.Decoder(HealthBatch).decode


@dataclass(frozen=True)
class Job:
    """What is sent where.

    Attributes:
        url: Where Redis is.
        messages: How many.
        health: Whether each is a batch of health signals; otherwise it is a dictionary of one number.
    """

    url: str
    messages: int
    health: bool

    @property
    def stream(self) -> str:
        """Name of the stream."""
        return HEALTH.stream if self.health else NUMBERS

    def each(self) -> Iterator[Message]:
        """Yield the messages."""
        if not self.health:
            yield from ({"n": n} for n in range(self.messages))
            return
        now = datetime.now(UTC)
        metrics = {"grad_norm": 0.25, "dead_ratio": 0.125, "weight_norm": 1.5, "entropy": 0.75}
        signals = tuple(
            HealthSignal(layer_id=f"layers.{place}", seed_idx=0, timestamp=now, metrics=metrics, health_score=0.5)
            for place in range(SIGNALS)
        )
        for step in range(self.messages):
            yield HealthBatch(run_id="run-1", step=step, signals=signals)

    def packed(self, number: int, message: Message) -> bytes:
        """Return a message as a program would send it that has nothing but redis-py and msgspec."""
        envelope = Envelope(
            type="HealthBatch" if self.health else "dict", version=1, id=MessageId(f"message-{number:024x}"),
            run_id=None, sent_at=datetime.now(UTC), traceparent=None, body=_encode(message),
        )  # fmt: skip
        return _encode(envelope)

    def decode(self, body: bytes) -> Message | dict[str, int]:
        """Return the message in a body."""
        return _health_of(body) if self.health else _number_of(body)


@dataclass(frozen=True)
class Done:
    """How a job went.

    Attributes:
        wall_s: From the first message given to the last acknowledgement.
        sender_cpu_s: Time on processors of the sender, after its start.
        reader_cpu_s: The same of the reader.
        reader_early_mib: Memory of the reader after a tenth of the messages.
        reader_late_mib: And after all.
    """

    wall_s: float
    sender_cpu_s: float
    reader_cpu_s: float
    reader_early_mib: float
    reader_late_mib: float

    @property
    def cpu_s(self) -> float:
        """Time on processors of both, without Redis."""
        return self.sender_cpu_s + self.reader_cpu_s


def done(library: str, job: Job) -> Done:
    """Let two fresh processes do a job."""
    with _started(f"{library}_read", job) as reader:
        try:
            assert reader.stdout is not None
            reader.stdout.readline()  # it is ready
            with _started(f"{library}_send", job) as sender:
                sent = _told(sender)
            read = _told(reader)
        finally:
            reader.kill()
    return Done(
        wall_s=read["ended_at"] - sent["began_at"],
        sender_cpu_s=sent["cpu_s"],
        reader_cpu_s=read["cpu_s"],
        reader_early_mib=read["early_mib"],
        reader_late_mib=read["late_mib"],
    )


def resident_mib() -> float:
    """Return the memory of this process that is really in use."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Tally:
    """Counts messages as they are handled, and weighs the process after a tenth of them."""

    def __init__(self, messages: int) -> None:
        self._messages, self._count = messages, 0
        self._early_mib = 0.0
        self._began_s = process_time()
        self.all = asyncio.Event()
        print("ready", flush=True)

    def __call__(self) -> None:
        """Count one."""
        self._count += 1
        if self._count == self._messages // 10:
            self._early_mib = resident_mib()
        if self._count == self._messages:
            self.all.set()

    def tell(self) -> None:
        """Print what the parent waits for, once everything is acknowledged."""
        late_mib, cpu_s = resident_mib(), process_time() - self._began_s
        _say(ended_at=perf_counter(), cpu_s=cpu_s, early_mib=self._early_mib, late_mib=late_mib)


async def esper_send(job: Job) -> None:
    """Send through a micro-batcher, with a future for each message."""
    config = RedisBusConfig(url=job.url, max_length=job.messages)
    async with RedisBus(config) as bus:
        began_at, began_s = perf_counter(), process_time()
        async with MicroBatcher(bus, MicroBatchConfig(max_messages=AT_ONCE, max_waiting=4 * AT_ONCE)) as batcher:
            for message in job.each():
                last = await batcher.add(job.stream, message)
        last.result()
        _say(began_at=began_at, cpu_s=process_time() - began_s)


async def esper_read(job: Job) -> None:
    """Read as a member of a group."""
    config = RedisBusConfig(url=job.url, batch=AT_ONCE, block_s=BLOCK_S)
    expected = HealthBatch if job.health else dict
    async with RedisBus(config) as bus:
        tally = Tally(job.messages)

        async def handle(delivery: Delivery) -> None:
            assert type(delivery.body) is expected
            tally()

        reading = asyncio.create_task(bus.subscribe(job.stream, GROUP, handle, start_from="0"))
        await tally.all.wait()
        await bus.close()
        await reading
        tally.tell()


async def redis_py_send(job: Job) -> None:
    """Send in pipelines, as entries of one field."""
    async with Redis.from_url(job.url, protocol=2) as client:
        await client.ping()
        began_at, began_s = perf_counter(), process_time()
        pipe = client.pipeline(transaction=False)
        for number, message in enumerate(job.each(), 1):
            pipe.xadd(job.stream, {"envelope": job.packed(number, message)}, maxlen=job.messages, approximate=True)
            if number % AT_ONCE == 0 or number == job.messages:
                await pipe.execute()
        _say(began_at=began_at, cpu_s=process_time() - began_s)


async def redis_py_read(job: Job) -> None:
    """Read as a member of a group; each read takes the acknowledgements of the one before along."""
    async with Redis.from_url(job.url, protocol=2) as client:
        with suppress(ResponseError):
            await client.xgroup_create(job.stream, GROUP, "0", mkstream=True)
        tally, ids = Tally(job.messages), list[bytes]()
        while not tally.all.is_set():
            pipe = client.pipeline(transaction=False)
            if ids:
                pipe.xack(job.stream, GROUP, *ids)
            pipe.xreadgroup(GROUP, MEMBER, {job.stream: ">"}, count=AT_ONCE, block=round(BLOCK_S * 1000))
            *_, found = await pipe.execute()
            entries = found[0][1] if found else []
            for _, fields in entries:
                envelope = _envelope_of(fields[b"envelope"])
                assert envelope.version == 1
                job.decode(envelope.body)
                tally()
            ids = [at for at, _ in entries]
        await client.xack(job.stream, GROUP, *ids)
        tally.tell()


async def faststream_send(job: Job) -> None:
    """Send in pipelines, as bytes that are encoded already."""
    async with RedisBroker(job.url, logger=None) as broker:
        await broker.ping(5.0)
        began_at, began_s = perf_counter(), process_time()
        pipe = broker.config.connection.client.pipeline(transaction=False)
        for number, message in enumerate(job.each(), 1):
            await broker.publish(_encode(message), stream=job.stream, maxlen=job.messages, pipeline=pipe)
            if number % AT_ONCE == 0 or number == job.messages:
                await pipe.execute()
        _say(began_at=began_at, cpu_s=process_time() - began_s)


async def faststream_read(job: Job) -> None:
    """Read as a member of a group; the handler decodes the bytes."""
    logging.disable(logging.CRITICAL)
    broker = RedisBroker(job.url, logger=None)
    block_ms = round(BLOCK_S * 1000)
    source = StreamSub(job.stream, group=GROUP, consumer=MEMBER, max_records=AT_ONCE, polling_interval=block_ms)

    @broker.subscriber(stream=source)
    async def handle(body: bytes) -> None:
        job.decode(body)
        tally()

    await broker.start()
    tally = Tally(job.messages)
    await tally.all.wait()
    await broker.stop()
    tally.tell()


Role: TypeAlias = Callable[[Job], Awaitable[None]]
ROLES: dict[str, Role] = {
    role.__name__: role
    for role in (esper_send, esper_read, redis_py_send, redis_py_read, faststream_send, faststream_read)
}


def _started(role: str, job: Job) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.support.bus_jobs", role, json.dumps(asdict(job))]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def _told(child: "subprocess.Popen[str]") -> dict[str, float]:
    output, _ = child.communicate(timeout=LIMIT_S)
    if child.returncode:
        raise RuntimeError(f"{child.args} ended with {child.returncode}")
    told: dict[str, float] = json.loads(output.splitlines()[-1])
    return told


def _say(**figures: float) -> None:
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    asyncio.run(asyncio.wait_for(ROLES[sys.argv[1]](Job(**json.loads(sys.argv[2]))), LIMIT_S))
