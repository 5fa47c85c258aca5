"""A forge that strangers send blueprints to, while a training waits for kernels."""

import asyncio
import itertools
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from hypothesis import HealthCheck, Phase, given, seed, settings
from pydantic import ValidationError

import esper.testing.faults as faults
from esper.contracts.events import CompilationEvent
from esper.contracts.kernel import BlueprintSubmissionRequest
from esper.contracts.topics import COMPILATIONS
from esper.errors import CompilationError, EsperError, Unavailable
from esper.ir import BlueprintIR
from esper.ports import Delivery
from esper.services.oona.memory_bus import MemoryBus
from esper.services.tezzeret.pool import ForgePool
from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.outbox import OutboxRelay
from esper.testing.faults import Fault, faulty
from esper.testing.forging import request_for
from esper.testing.hostile import Hostile, hostile

STRANGERS, TRAINING = 3, 8
"""Priorities."""
IN_FLIGHT = 64
"""Strangers who send at a time."""
GRACE_S = 15.0
"""A child that does not end its job by itself is killed and replaced: within 2 s on a quiet machine, 10 on a busy one."""
_ENDS = frozenset({"compiled", "rejected", "failed", "quarantined"})
HARMFUL = tuple(fault for fault in Fault if fault not in (Fault.NOISY, Fault.CALLS_HOME, Fault.WRITES, Fault.SLOW))
"""Faults that must not pass; the others only look bad."""


def drawn(count: int, number: int) -> list[Hostile]:
    """Draw what strangers send; the same for the same seed."""
    found: list[Hostile] = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(hostile())
    def keep(sent: Hostile) -> None:
        found.append(sent)

    keep()
    return [sent for sent, _ in zip(itertools.cycle(found), range(count), strict=False)]


def planted(kinds: Sequence[Fault], copies: int) -> list[BlueprintIR]:
    """Return blueprints with an operation that goes wrong, each of another width."""
    return [faulty(fault, channels=4 + copy) for copy in range(copies) for fault in kinds]


@dataclass
class Siege:
    """The forge, what was sent to it, and what came of that.

    Attributes:
        library: The store.
        answers: How many were refused at the door, let in, or met an error that nobody foresaw.
        endings: How attempts of strangers' jobs ended.
        let_in: Blueprints of strangers that reached the forge.
        unforeseen: The errors that nobody foresaw.
        longest_held_s: The longest that a job was held; while one child works, a second job is held for it and waits.
        pool: The forge's children.
        ended_by_itself: Says whether the forge came down.
    """

    library: KernelManager
    ended_by_itself: Callable[[], bool]
    pool: ForgePool
    answers: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    let_in: dict[str, str] = field(default_factory=dict)
    unforeseen: list[str] = field(default_factory=list)
    longest_held_s: float = 0.0
    _waiting: dict[str, "asyncio.Future[CompilationEvent]"] = field(default_factory=dict)

    async def heard(self, delivery: Delivery) -> None:
        """Note how an attempt ended."""
        event = delivery.body
        if not isinstance(event, CompilationEvent) or event.status not in _ENDS:
            return
        self.longest_held_s = max(self.longest_held_s, event.elapsed_ms / 1e3)
        if event.blueprint_id in self.let_in:
            self.endings[event.status] += 1
        waiting = self._waiting.pop(event.blueprint_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(event)

    async def wave(self, designs: Iterator[BlueprintIR], count: int) -> float:
        """Have a training ask for kernels at once; return the seconds until it has them all.

        Raises:
            CompilationError: If a sound design was not compiled.
        """
        wanted = list(itertools.islice(designs, count))
        loop = asyncio.get_running_loop()
        ended = [self._waiting.setdefault(ir.digest, loop.create_future()) for ir in wanted]
        began = perf_counter()
        await asyncio.gather(*(self.library.submit(request_for(ir, priority=TRAINING)) for ir in wanted))
        for event in await asyncio.gather(*ended):
            if event.status != "compiled":
                raise CompilationError(f"a sound design ended as {event.status}", why=event.reason)
        return perf_counter() - began

    async def flood(self, sent: Sequence[Hostile], broken: Sequence[BlueprintIR]) -> None:
        """Send everything, many at a time, what is planted in between."""
        every = [*sent, *broken]
        order = sorted(range(len(every)), key=lambda index: (index * 7919) % len(every) if len(every) > 1 else 0)
        left = iter(order)

        async def send() -> None:
            for index in left:
                await self._sent(every[index])

        async with asyncio.TaskGroup() as strangers:
            for _ in range(IN_FLIGHT):
                strangers.create_task(send())

    async def _sent(self, one: Hostile | BlueprintIR) -> None:
        try:
            request = _request(one)
            response = await self.library.submit(request)
        except Unavailable:
            self.answers["told to come again"] += 1
        except (EsperError, ValidationError):
            self.answers["refused"] += 1
        except Exception as error:
            self.answers["unforeseen"] += 1
            self.unforeseen.append(f"{type(error).__name__}: {error}"[:300])
        else:
            self.answers["let in"] += 1
            self.let_in[response.blueprint_id] = "planted" if isinstance(one, BlueprintIR) else one.kind
        await asyncio.sleep(0)


def _request(one: Hostile | BlueprintIR) -> BlueprintSubmissionRequest:
    """Return a submission; what comes as text is read as a file is."""
    source: object = one.to_json() if isinstance(one, BlueprintIR) else one.source
    if isinstance(source, str | bytes):
        source = BlueprintIR.from_json(source).to_json()
    return BlueprintSubmissionRequest.model_validate(
        {"name": "strange", "architecture_ir": source, "priority": STRANGERS, "submitted_by": "stranger"}
    )


@asynccontextmanager
async def siege(*, children: int, deadline_s: float) -> AsyncIterator[Siege]:
    """Run a store and a forge in a folder of their own; what brings the forge down is raised at the end."""
    with tempfile.TemporaryDirectory() as root:
        async with await KernelManager.open(Path(root) / "library") as library, MemoryBus() as bus:
            config = WorkerConfig(
                num_workers=children, deadline_s=deadline_s, extensions=(faults.__name__,), fork_per_job=True
            )
            forge, relay = TezzeretWorker(config, queue=library, bus=bus), OutboxRelay(library.outbox, bus)
            working = asyncio.create_task(forge.run())
            held = Siege(library, working.done, forge.pool)
            async with asyncio.TaskGroup() as parts:
                parts.create_task(relay.run())
                parts.create_task(bus.subscribe(COMPILATIONS.stream, "siege", held.heard))
                try:
                    yield held
                finally:
                    await forge.close()
                    await relay.close()
                    await bus.close()
            await working
