"""Fusion computes the same in evaluation, with fewer operations, and its shape depends on the design alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.blueprints.kernel import Kernel
from esper.blueprints.weights import initial_state
from esper.errors import CompilationError
from esper.ir import BlueprintIR, Graph, Layout
from esper.reference import evaluate
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.gates.trial import Trial, arrays
from esper.services.tezzeret.inference.fusion import fuse
from esper.testing.blueprints import blueprints


def trial_of(ir: BlueprintIR, dtype: str = "float64") -> Trial:
    return Trial(Kernel(ir, initial_state(ir, seed=3, dtype=dtype), 3, dtype, 1), ValidatorConfig())


def difference(ir: BlueprintIR) -> float:
    """Return how far the fused form is from the numpy reference, relative to the largest value."""
    trial = trial_of(ir)
    fused = fuse(ir, trial.grown)
    worst = 0.0
    for probe in trial.probes.all:
        x = trial.input(probe).numpy()
        expected = evaluate(ir, trial.grown_arrays, x, training=False)
        found = evaluate(fused.ir, arrays(fused.state), x, training=False)
        worst = max(worst, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)))
    return worst


@given(blueprints(max_nodes=12))
def test_a_fused_design_computes_what_it_did(ir: BlueprintIR) -> None:
    assert difference(ir) < 1e-9


@given(blueprints(max_nodes=12), st.integers(0, 5))
def test_its_shape_depends_on_the_design_alone(ir: BlueprintIR, seed: int) -> None:
    drawn = initial_state(ir, seed=seed, dtype="float32")
    assert fuse(ir, drawn).ir == fuse(ir, trial_of(ir, "float32").grown).ir


@given(blueprints(max_nodes=12))
def test_what_is_fused_stays_fused(ir: BlueprintIR) -> None:
    once = fuse(ir, trial_of(ir).grown)
    again = fuse(once.ir, once.state)
    assert again.steps == ()
    assert again.ir == once.ir


def conv_norm(layout: Layout = Layout.CHANNELS_2D) -> BlueprintIR:
    graph = Graph(layout, 6)
    hidden = graph.relu(graph.batch_norm(graph.conv(graph.input, out=12, kernel=3, groups=2, bias=False)))
    return graph.finish(graph.conv(hidden, out=6, kernel=1), name="conv_norm")


def norm_first() -> BlueprintIR:
    graph = Graph(Layout.CHANNELS_2D, 6)
    opened = graph.batch_norm(graph.input)
    mixed = graph.mul(graph.conv(opened, out=6, kernel=1, bias=False), graph.conv(opened, out=6, kernel=1))
    return graph.finish(mixed, name="norm_first")


def linear_chain() -> BlueprintIR:
    graph = Graph(Layout.TOKENS, 6)
    return graph.finish(
        graph.scale(graph.linear(graph.linear(graph.scale(graph.input, value=2.0), out=24), out=6), value=0.5),
        name="linear_chain",
    )


@pytest.mark.parametrize(
    ("ir", "ops"),
    [
        (conv_norm(), ["conv", "relu", "conv"]),
        (conv_norm(Layout.CHANNELS_1D), ["conv", "relu", "conv"]),
        (norm_first(), ["conv", "conv", "mul"]),
        (linear_chain(), ["linear"]),
    ],
    ids=lambda value: value.name if isinstance(value, BlueprintIR) else "",
)
def test_merges_what_can_be_merged(ir: BlueprintIR, ops: list[str]) -> None:
    assert [node.op for node in fuse(ir, trial_of(ir).grown).ir.nodes] == ops
    assert difference(ir) < 1e-12


def test_a_bottleneck_is_not_blown_up() -> None:
    graph = Graph(Layout.FEATURES, 64)
    ir = graph.finish(graph.linear(graph.linear(graph.input, out=4), out=64), name="low_rank")
    assert fuse(ir, trial_of(ir).grown).ir == ir


def test_a_norm_before_a_padded_convolution_stays() -> None:
    graph = Graph(Layout.CHANNELS_2D, 4)
    ir = graph.finish(graph.conv(graph.batch_norm(graph.input), out=4, kernel=3), name="padded")
    assert fuse(ir, trial_of(ir).grown).steps == ()


def test_a_value_that_is_used_twice_stays() -> None:
    graph = Graph(Layout.FEATURES, 4)
    shared = graph.linear(graph.input, out=4)
    ir = graph.finish(graph.add(graph.scale(shared, value=3.0), shared), name="shared")
    assert fuse(ir, trial_of(ir).grown).steps == ()


def test_does_not_change_what_it_is_given() -> None:
    ir = conv_norm()
    state = trial_of(ir).grown
    before = {name: tensor.clone() for name, tensor in state.items()}
    fuse(ir, state)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_refuses_a_merged_weight_that_overflows() -> None:
    graph = Graph(Layout.FEATURES, 4)
    ir = graph.finish(graph.linear(graph.scale(graph.input, value=1e6), out=4), name="loud")
    with pytest.raises(CompilationError, match="too large"):
        fuse(ir, initial_state(ir, seed=0, dtype="float16"))
