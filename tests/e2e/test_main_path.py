"""The main path without a stand-in anywhere: designed as data, compiled in another process, stored, grafted, undone."""

import asyncio
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.contracts.adaptation import AdaptationDecision, SystemStatePacket
from esper.errors import ConfigError, GraftFailed, NotFound
from esper.ir import REGISTRY, Graph, Handle, Site, digest_of
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.growth import Growth
from esper.testing.controllers import Silent

SEED = torch.Generator().manual_seed(7)
INPUTS = torch.rand(600, 2, generator=SEED) * 2 - 1
LABELS = (torch.sin(7 * INPUTS[:, 0]) > 2 * INPUTS[:, 1]).long()
HELD_OUT = slice(500, 600)


def _ring(g: Graph, site: Site) -> Handle:
    entered = g.layer_norm(g.input)
    value = g.tanh(g.pointwise(entered, out=24))
    gate = g.sigmoid(g.pointwise(entered, out=24))
    return g.pointwise(g.mul(value, gate), out=site.channels, init="zero")


@pytest.fixture
def ring() -> Iterator[str]:
    """A design that is in no catalogue; gone after the test, as the registry belongs to the process."""
    name = "ring_of_the_main_path"
    esper.blueprint(name)(_ring)
    assert name in REGISTRY.names()
    yield name
    del REGISTRY._entries[name]


def _host() -> nn.Sequential:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    esper.wrap(model, example=INPUTS[:1])
    return model


def _held_out(model: nn.Module) -> Tensor:
    return cross_entropy(model(INPUTS[HELD_OUT]), LABELS[HELD_OUT], reduction="none")


class Run:
    """A training that anyone could have written, with the three lines in it."""

    def __init__(self, root: Path, **changes: Any) -> None:
        self.model = _host()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 0.999**n)
        arguments = {"every": 20, "steps": 600, "budget": "x30", "controller": Silent(), "root": root, **changes}
        self.growth: Growth = esper.attach(
            self.model, self.optimizer, validate=_held_out, scheduler=self.schedule, **arguments
        )

    def train(self, steps: int) -> float:
        total = 0.0
        for _ in range(steps):
            batch = torch.randint(500, (32,))
            loss = cross_entropy(self.model(INPUTS[batch]), LABELS[batch])
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.growth.step(loss)
            total += float(loss.detach())
        return total / steps

    def outputs(self) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = self.model(INPUTS)
            return outputs


def _newborn(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".esper_grafts." in name}


def _stored(root: Path, query: str, *values: str) -> list[Any]:
    connection = sqlite3.connect(root / "library" / "library.db")
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def test_a_new_design_is_compiled_proven_grafted_learns_and_is_undone_to_the_bit(tmp_path: Path, ring: str) -> None:
    run = Run(tmp_path)
    with run.growth as growth:
        run.train(100)
        before, outputs, rates = growth.digest(), run.outputs(), [g["lr"] for g in run.optimizer.param_groups]
        generator = torch.get_rng_state()

        event = growth.graft("2", ring)
        blob = tmp_path / "library" / "blobs" / "sha256" / event.kernel_id[7:9] / event.kernel_id[7:]
        assert digest_of(blob.read_bytes()) == event.kernel_id, "what was grafted are the stored bytes"
        assert torch.equal(torch.get_rng_state(), generator), "grafting drew from the global generator"
        ((status, passed),) = _stored(
            tmp_path,
            "SELECT k.status, r.passed FROM kernels k JOIN validation_reports r ON r.kernel_id = k.id WHERE k.id = ?",
            event.kernel_id,
        )
        assert (status, passed) == ("validated", 1)
        assert float((run.outputs() - outputs).abs().max()) <= 1e-6, "unchanged at birth"

        born = _newborn(run.model)
        run.train(1)
        assert not torch.equal(run.outputs(), outputs), "changed after a step"
        early = run.train(20)
        late = sum(run.train(20) for _ in range(10)) / 10
        assert late < early, "the loss falls"
        learned = _newborn(run.model)
        still = [name for name in born if torch.equal(born[name], learned[name])]
        assert not still, f"parameters of the graft that never moved: {still}"

        undone = growth.rollback(event)
        assert undone.kind is EventKind.ROLLED_BACK
        assert growth.digest() == before
        assert torch.equal(run.outputs(), outputs)
        assert [g["lr"] for g in run.optimizer.param_groups] == rates
        assert torch.equal(torch.get_rng_state(), generator)
        assert not _newborn(run.model)
        with pytest.raises(NotFound):
            growth.rollback(event)
        with pytest.raises(GraftFailed, match="locked"):
            growth.graft("2", ring)
        growth.unlock("2")
        growth.graft("2", ring)
    assert _stored(tmp_path, "SELECT verdict FROM outcomes") == [("rolled_back",)]


def test_after_a_rollback_training_goes_on_as_if_nothing_had_grown(tmp_path: Path, ring: str) -> None:
    plain, grown = Run(tmp_path), Run(tmp_path)
    with plain.growth, grown.growth as growth:
        torch.manual_seed(11)
        plain.train(60)
        torch.manual_seed(11)
        grown.train(30)
        event = growth.graft("0", ring)
        grown.train(40)
        growth.rollback(event)
        grown.train(30)
        assert growth.digest() == plain.growth.digest()


def test_the_default_controller_grows_a_run_and_writes_down_why(tmp_path: Path) -> None:
    run = Run(tmp_path, controller="plateau", late="wait", budget="x20")
    with run.growth as growth:
        torch.manual_seed(5)
        run.train(600)
    grafted = [event for event in growth.events if event.kind is EventKind.GRAFTED]
    assert grafted, [str(event) for event in growth.events]
    assert all(event.why and event.evidence for event in grafted), "a graft says why, in numbers"
    verdicts = [event for event in growth.events if event.kept is not None]
    assert {event.decision_id for event in verdicts} == {event.decision_id for event in grafted}
    assert all(event.gain is not None for event in verdicts)
    written = [json.loads(line) for line in (tmp_path / growth.run_id / "events.jsonl").read_text().splitlines()]
    assert [entry["event_id"] for entry in written] == [event.event_id for event in growth.events]
    manifest = json.loads((tmp_path / growth.run_id / "growth.json").read_text())
    kept = {event.slot for event in verdicts if event.kept}
    assert manifest["version"] == 1
    assert {graft["slot"] for graft in manifest["grafts"]} == kept
    outcomes = _stored(tmp_path, "SELECT decision_id, verdict FROM outcomes")
    assert {decision for decision, _ in outcomes} == {event.decision_id for event in verdicts}
    params = sum(parameter.numel() for parameter in run.model.parameters())
    host = sum(parameter.numel() for parameter in _host().parameters())
    assert host < params <= 20 * host, "within its budget"
    assert growth.counters["run"]["failures"] == 0
    assert growth.counters["run"]["unasked"] == 0
    assert growth.counters["decisions"]["load_kernel"] == len(grafted)
    assert growth.counters["outcomes"] == {"kept": len(verdicts)}
    assert growth.counters["messages"]["telemetry.seed.health"] == 30
    assert growth.counters["health_signals"] == {"finite": 2 * 30, "nonfinite": 0}


def test_equal_runs_grow_equally(tmp_path: Path) -> None:
    def grown(root: Path) -> tuple[list[tuple[int, str, str]], str]:
        run = Run(root, controller="plateau", late="wait", steps=300, budget="x20")
        with run.growth as growth:
            torch.manual_seed(5)
            run.train(300)
            return [(event.step, event.slot, event.blueprint) for event in growth.events], growth.digest()

    assert grown(tmp_path / "first") == grown(tmp_path / "second")


def test_a_kernel_of_the_library_can_be_loaded_by_its_address(tmp_path: Path, ring: str) -> None:
    run = Run(tmp_path)
    with run.growth as growth:
        run.train(20)
        kernel_id = growth.graft("0", ring).kernel_id
        outputs = run.outputs()
        load: Callable[..., Any] = run.model.load_kernel
        asyncio.run(load("2", 0, kernel_id))
        assert float((run.outputs() - outputs).abs().max()) <= 1e-6
        run.train(20)
        assert any(name.startswith("2.esper_grafts.0.") for name in _newborn(run.model))
        with pytest.raises(NotFound):
            asyncio.run(load("2", 0, "sha256:" + "0" * 64))


def test_a_controller_that_cannot_be_asked_is_counted_and_training_goes_on(tmp_path: Path) -> None:
    class Away:
        async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
            raise esper_unavailable()

    run = Run(tmp_path, controller=Away(), late="wait")
    with run.growth as growth:
        run.train(100)
    assert growth.counters["run"]["unasked"] == 4, "asked at boundaries 1 to 5, answered from the second on"
    unasked = [event for event in growth.events if event.kind is EventKind.UNASKED]
    assert [event.step for event in unasked] == [40, 60, 80, 100]
    assert "planted" in unasked[0].why


def esper_unavailable() -> Exception:
    from esper.errors import Unavailable

    return Unavailable("planted outage")


def test_a_mistake_in_the_users_own_controller_is_seen(tmp_path: Path) -> None:
    class Wrong:
        def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
            raise ZeroDivisionError("planted mistake")

    run = Run(tmp_path, controller=Wrong(), late="wait")
    with run.growth, pytest.raises(ZeroDivisionError, match="planted mistake"):
        run.train(60)


def test_what_the_packet_masks_is_refused_whoever_asks_for_it(tmp_path: Path) -> None:
    class Greedy:
        def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
            over = next(c for c in packet.candidates if c.masked and c.kernel_id)
            return AdaptationDecision(
                action="load_kernel", target_layer=over.slot, blueprint=over.blueprint, kernel_id=over.kernel_id
            )

    run = Run(tmp_path, controller=Greedy(), late="wait", budget="+10%")
    with run.growth as growth:
        run.train(100)
    assert [event.kind for event in growth.events[:2]] == [EventKind.NOTHING, EventKind.CANCELLED]
    assert "raise budget=" in growth.events[0].why
    assert "over budget" in growth.events[1].why
    assert {event.kind for event in growth.events[1:]} == {EventKind.CANCELLED}
    assert not _newborn(run.model)


def test_a_run_in_which_nothing_grew_says_why(tmp_path: Path) -> None:
    run = Run(tmp_path, controller="plateau", late="slip", steps=40)
    with run.growth as growth:
        run.train(40)
    assert [event.kind for event in growth.events] == [EventKind.NOTHING]
    assert growth.events[0].why


def test_a_kernel_asked_for_by_another_thread_joins_between_two_steps_of_the_training(
    tmp_path: Path, ring: str
) -> None:
    run = Run(tmp_path)
    with run.growth as growth:
        kernel_id = growth.graft("0", ring).kernel_id
        run.train(1)
        threads: list[int] = []
        join = growth._engine.grafting.now
        growth._engine.grafting.now = lambda *given: (threads.append(threading.get_ident()), join(*given))[1]  # type: ignore[method-assign]
        load: Callable[..., Any] = run.model.load_kernel
        asking = threading.Thread(target=lambda: asyncio.run(load("2", 0, kernel_id)))
        asking.start()
        while asking.is_alive():
            run.train(1)
        asking.join()
        assert threads == [threading.get_ident()]
        assert any(name.startswith("2.esper_grafts.0.") for name in _newborn(run.model))


def test_a_decision_without_a_boundary_joins_after_the_lead_and_is_not_late(tmp_path: Path) -> None:
    class Once:
        def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
            if packet.boundary != 4:
                return AdaptationDecision(reason="not now")
            chosen = packet.candidates[0]
            return AdaptationDecision(action="load_kernel", target_layer=chosen.slot, kernel_id=chosen.kernel_id)

    run = Run(tmp_path, controller=Once(), late="wait", lead=2)
    with run.growth as growth:
        run.train(160)
    assert [(event.kind, event.step) for event in growth.events] == [(EventKind.GRAFTED, 6 * 20)]
    assert growth.events[0].blueprint, "the record has the design's own name"


def test_a_kernel_over_budget_is_refused_under_whatever_name(tmp_path: Path) -> None:
    class Nameless:
        def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
            chosen = packet.candidates[0]
            return AdaptationDecision(action="load_kernel", target_layer=chosen.slot, kernel_id=chosen.kernel_id)

    run = Run(tmp_path, controller=Nameless(), late="wait", budget="+1%")
    with run.growth:
        run.train(80)
    assert not _newborn(run.model)


def test_one_decision_is_applied_once(tmp_path: Path) -> None:
    class Parrot:
        def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
            free = [candidate for candidate in packet.candidates if not candidate.masked]
            if not free:
                return AdaptationDecision(reason="nothing is free")
            return AdaptationDecision(
                action="load_kernel", decision_id="always the same", target_layer=free[0].slot,
                blueprint=free[0].blueprint, kernel_id=free[0].kernel_id,
            )  # fmt: skip

    run = Run(tmp_path, controller=Parrot(), late="wait")
    with run.growth as growth:
        run.train(100)
    kinds = [event.kind for event in growth.events]
    assert kinds.count(EventKind.GRAFTED) == 1
    assert any("applied already" in event.why for event in growth.events if event.kind is EventKind.CANCELLED)


def test_a_closed_run_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.growth.close()
    with pytest.raises(ConfigError, match="closed"):
        run.growth.step(0.0)


def test_a_saved_run_of_another_training_is_refused_before_anything_changes(tmp_path: Path, ring: str) -> None:
    run = Run(tmp_path)
    with run.growth as growth:
        run.train(20)
        state = growth.state_dict()
    other = Run(tmp_path)
    with other.growth as growth:
        before = growth.digest()
        for odd, word in (
            ({**state, "subject": {**state["subject"], "optimizer": "SGD"}}, "SGD"),
            (
                {**state, "subject": {**state["subject"], "host": {**state["subject"]["host"], "0.weight": [9, 2]}}},
                "0.weight",
            ),
            (run.model.state_dict(), "version"),
        ):
            with pytest.raises(ConfigError, match=word):
                growth.load_state_dict(odd)
        assert growth.digest() == before
        growth.load_state_dict(state)
        growth.load_state_dict(state)
        assert len(growth.events) == len(state["events"]), "loading twice doubles no event"


def test_grafts_of_an_earlier_run_count_against_the_budget_of_the_next(tmp_path: Path, ring: str) -> None:
    run = Run(tmp_path)
    with run.growth as growth:
        growth.graft("0", ring)
    again: Growth = esper.attach(
        run.model, run.optimizer, validate=_held_out, every=20, scheduler=run.schedule, budget="x6", root=tmp_path
    )
    with again:
        own = {candidate.slot: candidate for candidate in again.propose() if candidate.blueprint == ring}
        assert "over budget: 1296 of 570 parameters" in own["2"].masked
