"""A training run hears decisions that other processes publish on a real Redis, applies each once, and refuses stale ones."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.contracts.adaptation import AdaptationDecision, Candidate, Outcome, SystemStatePacket, Verdict
from esper.contracts.topics import DECISIONS, HEALTH, OUTCOMES
from esper.errors import BusUnavailable
from esper.ports import Delivery
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.growth import Growth
from esper.testing.controllers import Silent
from esper.testing.servers import RedisServer

LIMIT_S = 30.0
INPUTS = torch.rand(200, 2, generator=torch.Generator().manual_seed(7)) * 2 - 1
LABELS = (torch.sin(7 * INPUTS[:, 0]) > 2 * INPUTS[:, 1]).long()

PUBLISHER = """
import asyncio, sys
from esper.contracts.adaptation import AdaptationDecision
from esper.services import OonaClient

async def main(url, decision):
    async with OonaClient(url) as client:
        await client.publish("control.adaptation.decision", AdaptationDecision.model_validate_json(decision))

asyncio.run(main(*sys.argv[1:]))
"""


class Run:
    """A small training on a bus that it shares."""

    def __init__(self, root: Path, url: str, controller: object = None) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        esper.wrap(self.model, example=INPUTS[:1])
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.growth: Growth = esper.attach(
            self.model, self.optimizer, validate=_held_out, every=5, budget="x30", controller=controller or Silent(),
            bus=url, root=root,
        )  # fmt: skip

    def step(self) -> list[GrowthEvent]:
        loss = cross_entropy(self.model(INPUTS), LABELS)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.growth.step(loss)

    def train_until(self, holds: Callable[[], object]) -> None:
        ends_at = time.monotonic() + LIMIT_S
        while not holds():
            assert time.monotonic() < ends_at, [str(event) for event in self.growth.events]
            self.step()
            time.sleep(0.002)

    def ready(self) -> list[Candidate]:
        return [candidate for candidate in self.growth.propose() if not candidate.masked]

    def candidate(self) -> Candidate:
        self.train_until(self.ready)
        return self.ready()[0]

    def decision(self, **changes: object) -> AdaptationDecision:
        chosen = self.candidate()
        return AdaptationDecision.model_validate(
            {
                "action": "load_kernel", "reason": "from elsewhere", "run_id": self.growth.run_id,
                "topology_version": 0, "target_layer": chosen.slot, "seed_idx": chosen.seed_idx,
                "blueprint": chosen.blueprint, "kernel_id": chosen.kernel_id, "strategy": "elsewhere", **changes,
            }
        )  # fmt: skip

    def events_of(self, decision: AdaptationDecision) -> list[EventKind]:
        return [event.kind for event in self.growth.events if event.decision_id == decision.decision_id]

    @property
    def counted(self) -> dict[str, int]:
        return self.growth.counters["run"]


def _held_out(model: nn.Module) -> Tensor:
    return cross_entropy(model(INPUTS[:50]), LABELS[:50], reduction="none")


def publish(server: RedisServer, *decisions: AdaptationDecision) -> None:
    """Publish decisions, each from a process of its own."""
    for decision in decisions:
        subprocess.run(
            [sys.executable, "-c", PUBLISHER, server.url, decision.model_dump_json()], check=True, timeout=60
        )


def messages(server: RedisServer, stream: str, enough: Callable[[list[Delivery]], bool]) -> list[Delivery]:
    """Return what a stream holds, once that is enough."""
    found: list[Delivery] = []

    async def read() -> None:
        done = asyncio.Event()

        async def keep(delivery: Delivery) -> None:
            found.append(delivery)
            if enough(found):
                done.set()

        async with RedisBus(RedisBusConfig(url=server.url, block_s=0.05)) as bus:
            reading = asyncio.ensure_future(bus.subscribe(stream, "test", keep, start_from="0"))
            async with asyncio.timeout(LIMIT_S):
                await done.wait()
            await bus.close()
            await reading

    asyncio.run(read())
    return found


@pytest.mark.slow
def test_a_decision_of_another_process_grafts_once_and_a_stale_one_is_refused_and_reported(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    run = Run(tmp_path, redis_server.url)
    with run.growth as growth:
        decision = run.decision()
        foreign = run.decision(run_id="run-of-somebody-else")
        publish(redis_server, foreign, decision)
        run.train_until(lambda: EventKind.GRAFTED in run.events_of(decision))
        (grafted,) = (event for event in growth.events if event.kind is EventKind.GRAFTED)
        assert (grafted.slot, grafted.kernel_id, grafted.why) == (
            decision.target_layer, decision.kernel_id, "from elsewhere",
        )  # fmt: skip
        assert run.events_of(foreign) == []

        publish(redis_server, decision)
        run.train_until(lambda: run.counted["doubled"] == 1)
        stale = run.decision(decision_id="decision-stale")
        publish(redis_server, stale)
        run.train_until(lambda: run.counted["refused"] == 1)
        run.train_until(lambda: run.events_of(stale))
        assert run.events_of(decision).count(EventKind.GRAFTED) == 1
        assert run.events_of(stale) == [EventKind.CANCELLED]
        (refused,) = (event for event in growth.events if event.decision_id == stale.decision_id)
        assert "made for 0" in refused.why
        assert "topology is 1" in refused.why
        groups = redis_server.ask(f"XINFO GROUPS {DECISIONS.stream}")
        assert growth.run_id.encode() in groups
    told = [d.body for d in messages(redis_server, OUTCOMES.stream, lambda found: bool(found))]
    assert [o.verdict for o in told if isinstance(o, Outcome) and o.decision_id == stale.decision_id] == [
        Verdict.CANCELLED
    ]
    assert growth.run_id.encode() not in redis_server.ask(f"XINFO GROUPS {DECISIONS.stream}"), "its group ends with it"
    health = messages(redis_server, HEALTH.stream, lambda found: bool(found))
    assert health[0].run_id == growth.run_id


class TwoDoors:
    """A controller that publishes what it answers, as one behind HTTP does."""

    def __init__(self, url: str, *, bus_first: bool) -> None:
        self.url, self.bus_first = url, bus_first
        self.run: Run | None = None
        self.decision: AdaptationDecision | None = None

    async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        run, ready = self.run, [candidate for candidate in packet.candidates if not candidate.masked]
        if run is None or not ready or self.decision is not None:
            return Silent().decide(packet)
        self.decision = decision = AdaptationDecision(
            action="load_kernel", run_id=packet.run_id, topology_version=packet.topology_version,
            target_layer=ready[0].slot, blueprint=ready[0].blueprint, kernel_id=ready[0].kernel_id, reason="both doors",
            boundary=packet.boundary + 40,
        )  # type: ignore[arg-type]  # fmt: skip
        if self.bus_first:
            async with RedisBus(RedisBusConfig(url=self.url)) as bus:
                await bus.publish(DECISIONS.stream, decision)
            async with asyncio.timeout(LIMIT_S):
                while not run.growth._engine.decisions.came_over_the_bus(decision):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)  # boundaries pass meanwhile: the run takes it from the bus
        return decision


@pytest.mark.slow
@pytest.mark.parametrize("bus_first", [True, False])
def test_an_answer_and_a_message_with_one_id_are_one_decision(
    redis_server: RedisServer, tmp_path: Path, bus_first: bool
) -> None:
    controller = TwoDoors(redis_server.url, bus_first=bus_first)
    controller.run = run = Run(tmp_path, redis_server.url, controller)
    with run.growth as growth:
        run.train_until(lambda: any(event.kind is EventKind.GRAFTED for event in growth.events))
        run.train_until(lambda: run.counted["doubled"] >= 1)
        boundaries = growth.planned_step + 15
        run.train_until(lambda: growth.planned_step >= boundaries)
        assert controller.decision is not None
        assert run.events_of(controller.decision).count(EventKind.GRAFTED) == 1
        assert EventKind.CANCELLED not in [event.kind for event in growth.events]
        assert run.counted["refused"] == 0
        assert run.counted["failures"] == 0


def test_a_shared_bus_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(BusUnavailable, match="Redis does not answer"):
        Run(tmp_path, "redis://127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_redis")  # so that it is installed
def test_training_goes_on_while_the_shared_bus_is_gone_and_nothing_that_matters_is_lost(
    tmp_path: Path, redis_program: str
) -> None:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis", program=redis_program) as server:
        run = Run(tmp_path / "runs", server.url)
        with run.growth as growth:
            chosen = run.candidate()
            server.kill()
            event = growth.graft(chosen.slot, chosen.blueprint)
            for _ in range(10):
                run.step()
            growth.rollback(event)
            assert growth.waits <= 2
            server.start()
            told = messages(server, OUTCOMES.stream, lambda found: bool(found))
            assert [d.body.decision_id for d in told if isinstance(d.body, Outcome)] == [event.decision_id]
