"""A candidate is compiled before its boundary, and what learns apart from a compiled slot leaves its code alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.contracts.adaptation import AdaptationDecision, SystemStatePacket
from esper.errors import GraftFailed
from esper.kasmina import placement_of
from esper.kasmina.incubation import TappedCall
from esper.services.tolaria.growth import Growth
from esper.testing.zoo import ZOO
from tests.laws.compiled import Counting, aot_eager, block_by_block, by_slots, in_place, nothing_compiled, whole
from tests.laws.test_law_3_isolated import FAULTS, Planted, take_in, train
from tests.laws.test_law_5_resumable import until_ready
from tests.laws.training import EVERY, Training, reseed, stock

__all__ = ["nothing_compiled"]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
HOST = ZOO["residual_mlp"]
PLAIN = ("sgd", "lambda")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock(tmp_path_factory.mktemp("stocked"))


class Once:
    """Asks for one blueprint at one slot."""

    def __init__(self, slot: str, blueprint: str, *, boundary: int, lead: int) -> None:
        self._wanted, self._boundary, self._lead = (slot, blueprint), boundary, lead

    def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        if packet.boundary != self._boundary:
            return AdaptationDecision(reason="not now", topology_version=packet.topology_version)
        (chosen,) = [c for c in packet.candidates if (c.slot, c.blueprint) == self._wanted]
        return AdaptationDecision(
            action="load_kernel", reason="planted", topology_version=packet.topology_version,
            boundary=packet.boundary + self._lead, target_layer=chosen.slot, blueprint=chosen.blueprint,
            kernel_id=chosen.kernel_id,
        )  # fmt: skip


def two_windows(training: Training, growth: Growth) -> None:
    """Train until right after the second boundary; whatever was asked is answered."""
    for _ in range(2):
        training.train(EVERY, growth)
        growth._engine.consultation.settle()


@pytest.mark.parametrize("lead", [1, 2])
@pytest.mark.parametrize("way", [by_slots, block_by_block, in_place])
def test_a_candidate_is_compiled_before_the_boundary_of_its_join(way: Any, lead: int, library: Path) -> None:
    backend = aot_eager()
    training = Training(HOST, PLAIN)
    way(training.model, backend)
    with training.attach(library, controller=Once("blocks.1", "gated_mlp", boundary=2, lead=lead)) as growth:
        until_ready(growth)
        two_windows(training, growth)
        counts = [backend.count]
        before = training.picture()
        waits = growth.waits
        growth._engine.between(None)
        assert not training.picture().differences(before)
        assert backend.count == counts[0] + 1
        assert growth.waits == waits + 1
        training.train(lead * EVERY, growth)
        assert [event.kind.value for event in growth.events] == ["grafted"]
        assert backend.count == counts[0] + 1
        training.train(1, growth)
        assert backend.count == counts[0] + 1


def test_what_cannot_be_compiled_is_told_at_the_join_and_costs_nothing_before(library: Path) -> None:
    broken = False

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        if broken:
            raise RuntimeError("this backend has a bad day")
        return graph.forward

    training = Training(HOST, PLAIN)
    by_slots(training.model, Counting(backend))
    with training.attach(library, controller=Once("blocks.1", "gated_mlp", boundary=2, lead=1)) as growth:
        until_ready(growth)
        two_windows(training, growth)
        before, broken = training.picture(), True
        growth._engine.between(None)
        assert not training.picture().differences(before)
        training.train(EVERY, growth)
        (event,) = growth.events
        assert event.kind.value == "cancelled"
        assert "bad day" in event.why


def test_a_graft_by_hand_while_a_step_is_measured_leaves_the_measurement_alone(library: Path) -> None:
    scores = []
    for early in (False, True):
        reseed(0)
        backend = aot_eager()
        training = Training(HOST, PLAIN)
        by_slots(training.model, backend)
        with training.attach(library) as growth:
            training.train(2 * EVERY - 1, growth)
            if early:
                growth.graft(
                    "blocks.1", "gated_mlp"
                )  # neutral: nothing that is measured changes by it but its own gradient
            training.train(1, growth)
            observation = growth._engine._last
            assert observation is not None
            scores.append(observation.scores)
            count = backend.count
            training.train(1, growth)
            assert backend.count == count
    assert scores[0].keys() == scores[1].keys()
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)


@pytest.mark.parametrize("fault", ["sound", "nan", "raises", "draws"])
@pytest.mark.parametrize("way", [by_slots, block_by_block])
def test_a_compiled_host_trains_to_the_bit_as_if_nothing_learned_beside_it(way: Any, fault: str) -> None:
    found: list[Any] = []
    for apart in (False, True):
        backend = aot_eager()
        training = Training(HOST, PLAIN)
        way(training.model, backend)
        reseed(3)
        training.train(3)
        count, incubator = backend.count, None
        if apart:
            incubator, apprentice = take_in(training, steps=6)
            apprentice.incubation.kernel = Planted(apprentice.incubation.kernel, FAULTS[fault][0])
        losses, reasons = train(training, 6, incubator)
        assert backend.count == count, "its code stays the very same"
        found.append((losses, training.picture()))
        if incubator is not None:
            assert bool(reasons) == bool(FAULTS[fault][1])
            for left in list(incubator.apprentices.values()):
                assert left.incubation.passes == 6
                assert isinstance(training.model.get_submodule(training.slots[-1])._compiled_call_impl, TappedCall)
                incubator.release(left)
        found.append((train(training, 3)[0], training.picture()))
    assert found[0][0] == found[2][0]
    assert found[1][0] == found[3][0]
    assert not found[0][1].differences(found[2][1])
    assert not found[1][1].differences(found[3][1])


def test_what_learned_apart_from_a_compiled_slot_joins_without_a_compilation(library: Path) -> None:
    backend = aot_eager()
    training = Training(HOST, PLAIN)
    by_slots(training.model, backend)
    with training.attach(library) as growth:
        training.train(2 * EVERY + 1, growth)  # evaluation is compiled at the second boundary
        growth.graft("blocks.1", "gated_mlp", incubate=2)
        count = backend.count
        training.train(EVERY - 1, growth)
        assert [event.kind.value for event in growth.events] == ["incubating", "grafted"]
        training.train(1, growth)
        assert backend.count == count


@pytest.mark.parametrize("way", [in_place, whole, "around"])
def test_inside_a_compiled_region_nothing_can_learn_apart(way: Any, library: Path) -> None:
    training = Training(HOST, PLAIN)
    if way == "around":
        inner = training.model
        training.model = torch.compile(inner, backend="eager")  # type: ignore[assignment]
        slot = next(iter(placement_of(inner).slots))
    else:
        way(training.model, aot_eager())
        slot = training.slots[-1]
    with training.attach(library) as growth, pytest.raises(GraftFailed, match="compile slot by slot"):
        growth.graft(slot, "mlp_adapter", incubate=3)


def test_a_part_inside_a_slot_may_be_compiled(library: Path) -> None:
    training = Training(HOST, PLAIN)
    block = training.model.get_submodule("blocks.1")
    inner = next(name for name, child in block.named_modules() if isinstance(child, nn.Linear))
    esper.compile(training.model, [f"blocks.1.{inner}"], backend=aot_eager())
    training.train(1)
    incubator, apprentice = take_in(training)
    train(training, 2, incubator)
    assert apprentice.incubation.passes == 2


def test_a_copy_of_a_compiled_model_has_nothing_that_learns_apart() -> None:
    training = Training(HOST, PLAIN)
    by_slots(training.model, aot_eager())
    take_in(training)
    twin = copy.deepcopy(training.model)
    assert twin.get_submodule(training.slots[-1])._compiled_call_impl is None
    batch = HOST.batch()
    HOST.loss(twin, batch).backward()
    assert take_in(Training(HOST, PLAIN))[1].incubation.passes == 0
