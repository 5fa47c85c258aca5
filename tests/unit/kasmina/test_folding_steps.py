"""Every operation folds, and linear neighbours become one where that is right."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from esper.blueprints import KernelModule
from esper.ir import BlueprintIR, Graph, Handle, Layout, ops
from esper.kasmina import fold
from esper.kasmina.folding.bodies import RULES
from esper.kasmina.folding.steps import Step, steps_of
from esper.kasmina.grafted import Graft
from esper.testing.blueprints import blueprints
from tests.unit.kasmina.folding import IMAGES, TOKENS, drawn, model_with


def test_every_operation_of_the_closed_set_can_be_folded() -> None:
    assert sorted(RULES) == sorted(name for name in ops.names() if ops.get(name).trusted)


BATCH_NORM = drawn(Layout.CHANNELS_2D, lambda g: g.conv(g.batch_norm(g.input), out=4, kernel=3))


@given(ir=blueprints(), alpha=st.sampled_from([1.0, 0.5, -2.0]), training=st.booleans(), seed=st.integers(0, 9))
@example(ir=BATCH_NORM, alpha=1.0, training=True, seed=0)
@settings(max_examples=80, deadline=None)
def test_random_blueprints_fold_in_both_modes(ir: BlueprintIR, alpha: float, training: bool, seed: int) -> None:
    model, x = model_with(ir, alpha=alpha, seed=seed)
    alone = fold(model)
    x.requires_grad_(True)
    for _ in range(2):  # running statistics move alike
        left, right = model.train(training)(x), alone.train(training)(x)
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(model.eval()(x), alone.eval()(x), rtol=1e-7, atol=1e-7)
    given_back = [torch.autograd.grad(each(x).square().sum(), x)[0] for each in (model, alone)]
    torch.testing.assert_close(*given_back, rtol=1e-6, atol=1e-6)
    assert sum(p.numel() for p in alone.parameters()) <= sum(p.numel() for p in model.parameters())


def merged(ir: BlueprintIR, alpha: float = 1.0) -> tuple[Step, ...]:
    model, x = model_with(ir, alpha=alpha)
    graft = model.get_submodule("0.esper_grafts.0")
    assert isinstance(graft, Graft)
    torch.testing.assert_close(model(x), fold(model)(x), rtol=1e-9, atol=1e-9)
    kernel = graft.kernel
    assert isinstance(kernel, KernelModule)
    return steps_of(kernel, alpha)


MERGES: dict[str, tuple[Layout, Callable[[Graph], Handle], list[str]]] = {
    "two linears": (TOKENS, lambda g: g.linear(g.linear(g.input, out=9), out=4), ["linear"]),
    "three linears": (TOKENS, lambda g: g.linear(g.linear(g.linear(g.input, out=8), out=8), out=4), ["linear"]),
    "a scale before": (TOKENS, lambda g: g.linear(g.scale(g.input, value=0.5), out=4), ["linear"]),
    "a scale after": (TOKENS, lambda g: g.scale(g.linear(g.input, out=4), value=0.5), ["linear"]),
    "two scales": (TOKENS, lambda g: g.scale(g.scale(g.input, value=0.5), value=3.0), ["scale"]),
    "a 1x1 after": (IMAGES, lambda g: g.conv(g.conv(g.input, out=6, kernel=3), out=4, kernel=1), ["conv"]),
    "a 1x1 without bias before": (
        IMAGES, lambda g: g.conv(g.conv(g.input, out=6, kernel=1, bias=False), out=4, kernel=3), ["conv"],
    ),
    "a 1x1 before a padding that copies": (
        IMAGES,
        lambda g: g.conv(g.conv(g.input, out=6, kernel=1), out=4, kernel=3, padding_mode="reflect"),
        ["conv"],
    ),
    "a 1x1 whose bias would be missing at the border": (
        IMAGES, lambda g: g.conv(g.conv(g.input, out=6, kernel=1), out=4, kernel=3), ["conv", "conv"],
    ),
    "groups": (
        IMAGES,
        lambda g: g.conv(g.conv(g.input, out=4, kernel=3, groups=2), out=4, kernel=1),
        ["conv", "conv"],
    ),
    "two 3x3": (IMAGES, lambda g: g.conv(g.conv(g.input, out=4, kernel=3), out=4, kernel=3), ["conv", "conv"]),
    "a bottleneck that is cheaper in two": (
        TOKENS, lambda g: g.linear(g.linear(g.input, out=1), out=4), ["linear", "linear"],
    ),
    "a nonlinearity between": (
        TOKENS, lambda g: g.linear(g.tanh(g.linear(g.input, out=9)), out=4), ["linear", "tanh", "linear"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGES)
def test_linear_neighbours_become_one_where_that_is_right_and_no_larger(case: str) -> None:
    layout, draw, left = MERGES[case]
    assert [step.op for step in merged(drawn(layout, draw))] == left


def test_a_value_that_is_used_twice_is_not_merged_away() -> None:
    def twice(g: Graph) -> Handle:
        value = g.linear(g.input, out=4)
        return g.add(g.linear(value, out=4), value)

    assert [step.op for step in merged(drawn(TOKENS, twice))] == ["linear", "linear", "add"]
    assert [step.op for step in merged(drawn(TOKENS, twice), alpha=0.5)] == ["linear", "linear", "add", "scale"]
