"""One chaos schedule, played on real processes: ``python -m benchmarks.support.chaos_stage SEED`` plays one again.

The seed draws the schedule; in what moment of the work a fault strikes is the machine's own dice.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic

from benchmarks.support.chaos_actor import Actor
from benchmarks.support.chaos_ledger import Ledger, rows_of
from benchmarks.support.chaos_plan import READERS, TRAFFIC_S, WRITERS, BusKind, Fault, FaultKind, Flaw, Plan, plan
from benchmarks.support.chaos_worker import QUIET, STREAM, UNDERTAKERS, Spec, Worker
from esper.testing.history import Event, History, Kind, Message, breaches, read
from esper.testing.leap import LeapingClock
from esper.testing.proxy import FaultProxy, Way
from esper.testing.servers import RedisServer

REST_S = 3.0
"""A bus is at rest when nothing has happened for so long: longer than any lease, pause and limit of a schedule."""
PATIENCE_S = 15.0
"""The same for readers that are sound, while something is missing: a busy machine may leave a process aside for seconds."""
LIMIT_S = 180.0
_COMMANDS = (b"XREADGROUP", b"XREADGROUP", b"XACK", b"XADD", b"EVAL", b"XAUTOCLAIM", b"XCLAIM", b"")
"""Which command may come late; the last stands for any."""
_GROUPS = {"sole": "sole", "left": "shared", "right": "shared"}


@dataclass
class Outcome:
    """What came of a schedule.

    Attributes:
        seed: Its seed.
        bus: What carried the messages.
        faults: What went wrong.
        counts: Events of each kind, and how many messages came again.
        breaches: Broken promises.
        struck: How often each kind of fault struck.
        crashes: What processes said that ended by themselves.
        took_s: How long it took.
    """

    seed: int
    bus: str
    faults: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    breaches: list[list[object]] = field(default_factory=list)
    struck: dict[str, int] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether every promise was kept and nothing crashed."""
        return not self.breaches and not self.crashes


class Stage:
    """Everything that takes part in one schedule."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.server: RedisServer | None = None
        self.proxies: dict[str, FaultProxy] = {}
        self.actors: dict[str, Actor] = {}
        self.clocks: dict[str, LeapingClock] = {}
        self.struck: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    @asynccontextmanager
    async def set(self) -> AsyncIterator["Stage"]:
        """Start every part, and end it with the block."""
        async with AsyncExitStack() as stack:
            ledger = Ledger(self.folder)
            await ledger.create()
            await ledger.close()
            if self.plan.bus is BusKind.REDIS:
                await self._set_redis(stack)
            else:
                readers = [(group, name) for name, group in _GROUPS.items()]
                self._cast("bus", writers=len(WRITERS), readers=[*readers, (UNDERTAKERS, "undertaker")])
            for actor in self.actors.values():
                stack.callback(actor.close)
                actor.start()
            yield self

    async def _set_redis(self, stack: AsyncExitStack) -> None:
        (self.folder / "redis").mkdir()
        self.server = stack.enter_context(RedisServer(self.folder / "redis", wrapper=self._wrapper("server")))
        for n, side in enumerate(("readers", "writers")):
            proxy = FaultProxy(self.server.port, seed=self.plan.seed + n)
            self.proxies[side] = await stack.enter_async_context(proxy)
        ways = {side: f"redis://127.0.0.1:{proxy.port}" for side, proxy in self.proxies.items()}
        for name in READERS:
            stable = name == "sole" or self.plan.keeps_name
            member = name if stable else "{process}"
            self._cast(name, url=ways["readers"], member=member, readers=[(_GROUPS[name], "")])
        await stack.enter_async_context(self._undertaking(self.server.url))
        for name in WRITERS:
            self._cast(name, url=ways["writers"], writers=1)

    @asynccontextmanager
    async def _undertaking(self, url: str) -> AsyncIterator[None]:
        """Read the dead letters in this process, which nothing strikes."""
        name = "undertaker-0"
        spec = Spec(name, str(self.folder), self.plan.seed, url=url, member=name, readers=[(UNDERTAKERS, name)])
        with History.at(self.folder / f"{name}.jsonl") as history:
            task = asyncio.create_task(Worker(spec, history).run())
            try:
                yield
            finally:
                (self.folder / name).touch()
                await task

    def _cast(self, name: str, **spec: object) -> None:
        plan = self.plan
        common = {
            "folder": str(self.folder), "seed": plan.seed, "flaw": plan.flaw.value, "batch": plan.batch,
            "at_once": plan.at_once, "longest": plan.longest, "pause_s": plan.pause_s, "work_s": plan.work_s, "fails": plan.fails,
            "tries": plan.tries, "member": "",
        }  # fmt: skip
        self.actors[name] = Actor(self.folder, name, common | spec, self._wrapper(name))

    def _wrapper(self, name: str) -> Sequence[str]:
        """Return what lets the clock of a process leap, where the plan wants that."""
        if not any(fault.kind is FaultKind.LEAP and fault.target == name for fault in self.plan.faults):
            return ()
        folder = self.folder / f"clock-{name}"
        folder.mkdir()
        self.clocks[name] = LeapingClock(folder)
        return self.clocks[name].wrapper

    async def play(self) -> None:
        """Let writers write, let every fault strike, heal, and wait until the bus is at rest."""
        await self._until(self._works)
        async with asyncio.TaskGroup() as faults:
            for fault in self.plan.faults:
                faults.create_task(self._strike(fault))
            await asyncio.sleep(TRAFFIC_S)
        await self._until(lambda: all(actor.has_begun for actor in self.actors.values()))
        (self.folder / QUIET).touch()
        await self._until_at_rest()
        await asyncio.gather(*(actor.stop() for actor in self.actors.values()))

    async def _strike(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        async with self._locks.setdefault(fault.target, asyncio.Lock()):
            self.struck[fault.kind.value] += 1
            if fault.kind is FaultKind.LEAP:
                self.clocks[fault.target].leap(_leap_s(fault.amount))
            elif fault.target in self.proxies:
                await self._disturb(self.proxies[fault.target], fault)
            elif fault.target == "server":
                await self._strike_server(fault)
            else:
                await self._strike_actor(self.actors[fault.target], fault)

    async def _strike_server(self, fault: Fault) -> None:
        assert self.server is not None
        match fault.kind:
            case FaultKind.KILL:
                self.server.kill()
                await asyncio.sleep(fault.lasts_s)
                await asyncio.to_thread(self.server.start)
            case FaultKind.DESTROY:
                group = "sole" if fault.amount < 0.5 else "shared"
                with History.at(self.folder / "stage.jsonl") as history:
                    history.note(Kind.VANISHED, Message(STREAM, "", -1), group=group)
                    await asyncio.to_thread(self.server.ask, f"XGROUP DESTROY {STREAM} {group}")
                    history.note(Kind.VANISHED, Message(STREAM, "", -1), group=group)
            case _:
                self.server.freeze()
                await asyncio.sleep(fault.lasts_s)
                self.server.thaw()

    async def _strike_actor(self, actor: Actor, fault: Fault) -> None:
        await self._until(lambda: actor.has_begun)
        match fault.kind:
            case FaultKind.FREEZE:
                actor.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
                actor.signal(signal.SIGCONT)
            case FaultKind.FULL_DISK:
                actor.fill_disk(True)
                await asyncio.sleep(fault.lasts_s)
                actor.fill_disk(False)
            case _:
                actor.kill() if fault.kind is FaultKind.KILL else await actor.stop()
                await asyncio.sleep(fault.lasts_s)
                actor.start()

    async def _disturb(self, proxy: FaultProxy, fault: Fault) -> None:
        match fault.kind:
            case FaultKind.RESET:
                proxy.reset()
            case FaultKind.CUT:
                proxy.cut(Way.UP if fault.amount < 0.5 else Way.DOWN, after_bytes=round(3000 * fault.amount))
            case FaultKind.DELAY:
                command = _COMMANDS[int(len(_COMMANDS) * fault.amount)]
                proxy.delay(Way.UP, 0.5 + fault.lasts_s, containing=command)
            case FaultKind.HOLD:
                proxy.hold()
            case FaultKind.SWALLOW:
                proxy.swallow()
            case FaultKind.REFUSE:
                proxy.refuse()
            case _:
                jitter_s = (0.05, 0.3, 1.0)[int(3 * fault.amount)]
                proxy.slow(latency_s=jitter_s / 10, jitter_s=jitter_s, bytes_per_s=20_000 + 200_000 * fault.amount)
        await asyncio.sleep(fault.lasts_s)
        await proxy.heal()

    def _works(self) -> bool:
        return len({event.group for event in read(self.folder) if event.kind is Kind.HANDED}) >= 2

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until every process does something again; one that ended by itself is told of at the end."""
        ends_at = monotonic() + LIMIT_S
        while not holds():
            if monotonic() > ends_at:
                return
            await asyncio.sleep(0.1)

    async def _until_at_rest(self) -> None:
        ends_at, seen, since = monotonic() + LIMIT_S, -1, monotonic()
        rest_s = PATIENCE_S if self.plan.flaw is Flaw.NONE else REST_S
        while monotonic() < ends_at and monotonic() - since < rest_s:
            size = sum(path.stat().st_size for path in self.folder.glob("*.jsonl")) + len(rows_of(self.folder))
            if size != seen:
                seen, since = size, monotonic()
            elif self.plan.flaw is Flaw.NONE and monotonic() - since > 0.5 and not self.breaches():
                return
            await asyncio.sleep(0.1)

    def events(self) -> list[Event]:
        """Return what happened, with every effect that is durable."""
        effects = (
            Event(Kind.EFFECT, 0, "effects", STREAM, writer, number, id, group)
            for group, id, writer, number in rows_of(self.folder)
        )
        return [*effects, *read(self.folder)]

    def breaches(self) -> list[list[object]]:
        """Return the promises that are broken now."""
        return [[breach.promise, *breach.message, breach.group, breach.why] for breach in breaches(self.events())]


def _leap_s(amount: float) -> float:
    """Return by how much a clock leaps: up to a second back, beyond which taking over waits, or up to an hour forward."""
    return -2.0 * amount if amount < 0.5 else 3600.0 * (2.0 * amount - 1.0)


async def played(plan: Plan, folder: Path) -> Outcome:
    """Play a schedule in a folder, and judge it."""
    start = monotonic()
    outcome = Outcome(plan.seed, plan.bus, [str(fault) for fault in plan.faults])
    async with Stage(plan, folder).set() as stage:
        await stage.play()
        outcome.breaches = stage.breaches()
        outcome.crashes = [crash for actor in stage.actors.values() for crash in actor.crashes]
        events = stage.events()
    outcome.counts = dict(Counter(event.kind.value for event in events))
    outcome.counts["redelivered"] = sum(event.redelivered for event in events)
    outcome.struck = dict(stage.struck)
    outcome.took_s = monotonic() - start
    return outcome


def outcome_of(told: dict[str, object]) -> Outcome:
    """Return the outcome that a process printed."""
    return Outcome(**told)  # type: ignore[arg-type]


def main() -> int:
    """Play one schedule and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.support.chaos_stage", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--flaw", type=Flaw, choices=list(Flaw), default=Flaw.NONE)
    parser.add_argument("--bus", type=BusKind, choices=list(BusKind))
    parser.add_argument("--folder", type=Path, help="keep histories and files there")
    given = parser.parse_args()
    drawn = plan(given.seed, flaw=given.flaw, bus=given.bus)
    with tempfile.TemporaryDirectory(prefix="esper-chaos-") as name:
        folder = given.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = asyncio.run(played(drawn, folder))
    print(json.dumps(asdict(outcome), indent=1))
    return 0 if outcome.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
