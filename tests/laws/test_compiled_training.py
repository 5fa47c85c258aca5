"""A compiled training grows as an eager one does: measured the same, compiled ahead, undone and resumed to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esper
from esper.errors import GraftFailed
from esper.kasmina import placement_of, wrap
from esper.services.tolaria.growth import Growth
from esper.testing.zoo import ZOO
from tests.laws.compiled import Counting, aot_eager, block_by_block, by_slots, in_place, nothing_compiled, whole
from tests.laws.training import EVERY, Training, reseed, stock

__all__ = ["nothing_compiled"]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
HOST = ZOO["residual_mlp"]
PLAIN = ("sgd", "lambda")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stock(tmp_path_factory.mktemp("stocked"))


def started(library: Path, way: Callable[..., None] | None, backend: Counting) -> tuple[Training, Growth]:
    """Return a training, compiled where a way is given, that has passed a boundary and the step after it."""
    reseed(0)
    training = Training(HOST, PLAIN)
    if way is not None:
        way(training.model, backend)
    growth = training.attach(library)
    training.train(EVERY + 1, growth)
    return training, growth


@pytest.mark.parametrize("way", [by_slots, in_place])
def test_scores_health_losses_and_operations_are_those_of_the_eager_run(
    library: Path, way: Callable[..., None]
) -> None:
    seen: list[tuple[Any, ...]] = []
    for each in (None, way):
        training, growth = started(library, each, aot_eager())
        with growth:
            training.train(EVERY, growth)
            observation = growth._engine._last
            assert observation is not None
            signals = {signal.layer_id: signal.metrics["grad_norm"] for signal in observation.health}
            seen.append((observation.scores, signals, observation.point.validation, growth.flops))
    eager, compiled = seen
    assert set(eager[0]) == set(compiled[0]) == set(placement_of(training.model).slots)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-3, abs=1e-6)
    assert compiled[1] == pytest.approx(eager[1], rel=1e-4)
    assert compiled[2] == pytest.approx(eager[2], abs=1e-5)
    assert compiled[3] == eager[3]
    assert compiled[3]["evaluation"] > 0


@pytest.mark.parametrize("way", [by_slots, block_by_block, in_place, whole])
def test_the_first_step_after_a_join_compiles_nothing(library: Path, way: Callable[..., None]) -> None:
    backend = aot_eager()
    training, growth = started(library, way, backend)
    with growth:
        before, rng = backend.count, torch.get_rng_state()
        buffers = {name: b.clone() for name, b in training.model.named_buffers()}
        growth.graft("blocks.1", "gated_mlp")
        assert backend.count == before + 1
        assert torch.equal(rng, torch.get_rng_state())
        assert all(torch.equal(buffers[name], dict(training.model.named_buffers())[name]) for name in buffers)
        training.train(1, growth)
        assert backend.count == before + 1
        assert growth.waits > 0


def test_a_wrapped_and_compiled_model_can_be_attached_as_torch_compile_returned_it(library: Path) -> None:
    backend = aot_eager()
    reseed(0)
    training = Training(HOST, PLAIN)
    inner = training.model
    training.model = torch.compile(inner, backend=backend)  # type: ignore[assignment]
    growth = training.attach(library)
    with growth:
        training.train(EVERY + 1, growth)
        before = backend.count
        growth.graft("blocks.1", "gated_mlp")
        assert backend.count == before + 1
        training.train(1, growth)
        assert backend.count == before + 1
        assert not any("_orig_mod" in key for key in inner.state_dict())


def test_a_region_that_does_not_compile_makes_the_graft_fail_and_leaves_the_training_as_it_was(library: Path) -> None:
    broken = False

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        if broken:
            raise RuntimeError("this backend has a bad day")
        return graph.forward

    training, growth = started(library, by_slots, Counting(backend))
    with growth:
        broken, before = True, training.picture()
        with pytest.raises(GraftFailed, match="bad day"):
            growth.graft("blocks.1", "gated_mlp")
        assert before.differences(training.picture()) == []
        training.train(1, growth)


def test_a_rollback_and_a_resume_are_exact_to_the_bit(library: Path) -> None:
    backend = aot_eager()
    training, growth = started(library, by_slots, backend)
    with growth:
        before = training.picture()
        event = growth.graft("blocks.1", "gated_mlp")
        training.train(2, growth)
        growth.rollback(event)
        assert before.differences(training.picture()) == []
        growth.unlock("blocks.1")
        growth.graft("blocks.2", "mlp_adapter")
        training.train(1, growth)
        state = growth.state_dict()
        unbroken = training.train(2 * EVERY, growth)
        last = training.picture()
    torch._dynamo.reset()
    again = Training(HOST, PLAIN, seed=5)
    by_slots(again.model, aot_eager())
    with again.attach(library) as resumed:
        resumed.load_state_dict(state)
        assert again.train(2 * EVERY, resumed) == unbroken
        assert last.differences(again.picture()) == []
    assert backend.count > 0


@pytest.mark.parametrize("way", ["in place", "around", "blocks"])
def test_a_compiled_model_learns_its_shapes_from_its_first_forward(way: str) -> None:
    model, backend = wrap(HOST.model()), Counting()
    called: nn.Module = model
    if way == "in place":
        model.compile(backend=backend)
    elif way == "around":
        called = torch.compile(model, backend=backend)  # type: ignore[assignment]
    else:
        esper.compile(model, ["blocks.*"], backend=backend)
    called(HOST.batch().x)
    expected = wrap(HOST.model(), example=HOST.batch().x)
    found = [{n: p.site() for n, p in placement_of(each).slots.items()} for each in (model, expected)]
    assert found[0] == found[1]
    called(HOST.batch().x)
    assert backend.count > 0
