"""The torch interpreter against the numpy oracle."""

import copy
import pickle
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esper.blueprints import KernelModule, initial_state
from esper.errors import ContractError
from esper.ir import BlueprintIR, Layout, Site, build, cost
from esper.reference import buffers_after, evaluate
from esper.testing.blueprints import SHORTEST_EXTENT, Array, blueprints, input_shape, random_input, random_weights

SEEDS = st.integers(0, 2**32 - 1)
BATCHES = st.sampled_from((1, 3))
EXTENTS = st.sampled_from((SHORTEST_EXTENT, 7, 8))


def kernel_of(ir: BlueprintIR, weights: Mapping[str, Array]) -> KernelModule:
    return KernelModule(ir, {name: torch.from_numpy(value.copy()) for name, value in weights.items()})


def assert_equal(found: Tensor, expected: Array, tolerance: float = 1e-10) -> None:
    """Compare relative to the largest value, as products of products can grow."""
    scale = max(1.0, float(np.abs(expected).max()))
    assert float(np.abs(found.detach().numpy() - expected).max()) <= tolerance * scale


@given(ir=blueprints(), seed=SEEDS, batch=BATCHES, extent=EXTENTS)
@settings(max_examples=150, deadline=None)
def test_a_kernel_computes_what_the_oracle_computes_in_training_and_in_evaluation(
    ir: BlueprintIR, seed: int, batch: int, extent: int
) -> None:
    weights = random_weights(ir, seed)
    x = random_input(ir, batch=batch, extent=extent, seed=seed)
    kernel = kernel_of(ir, weights)
    assert_equal(kernel.train()(torch.from_numpy(x)), evaluate(ir, weights, x, training=True))
    for name, buffer in buffers_after(ir, weights, x).items():
        assert_equal(kernel.get_buffer(name), buffer)
        weights[name] = buffer
    assert_equal(kernel.eval()(torch.from_numpy(x)), evaluate(ir, weights, x))


@given(ir=blueprints(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_static_cost_is_what_torch_counts(ir: BlueprintIR, seed: int) -> None:
    kernel = kernel_of(ir, random_weights(ir, seed))
    x = torch.from_numpy(random_input(ir, batch=3, extent=SHORTEST_EXTENT, seed=seed))
    # The math form, as the counter knows no fused attention of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        kernel(x)
    extent = input_shape(ir, 1, SHORTEST_EXTENT)[2:] if ir.layout.is_channels_first else x.shape[1:-1]
    static = cost(ir, tuple(extent))
    assert 3 * static.flops == counter.get_total_flops()
    assert static.params == sum(parameter.numel() for parameter in kernel.parameters())


@given(ir=blueprints(), seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_gradients_agree_with_finite_differences_of_the_oracle(ir: BlueprintIR, seed: int) -> None:
    weights = random_weights(ir, seed)
    x = random_input(ir, batch=2, extent=SHORTEST_EXTENT, seed=seed)
    ruler = np.random.default_rng(seed).normal(size=x.shape)
    kernel = kernel_of(ir, weights)
    entered = torch.from_numpy(x).requires_grad_()
    (kernel(entered) * torch.from_numpy(ruler)).sum().backward()
    grads = {name: parameter.grad for name, parameter in kernel.named_parameters()} | {"input": entered.grad}
    rng = np.random.default_rng(seed + 1)
    for name, grad in grads.items():
        if grad is None:
            continue
        held = x if name == "input" else weights[name]
        way = rng.normal(size=held.shape)

        def along(step: float, name: str = name, held: Array = held, way: Array = way) -> float:
            moved = held + step * way
            if name == "input":
                return float((evaluate(ir, weights, moved, training=True) * ruler).sum())
            return float((evaluate(ir, {**weights, name: moved}, x, training=True) * ruler).sum())

        slope = float((grad.numpy() * way).sum())
        assert_slope(along, slope)


def assert_slope(along: "object", slope: float) -> None:
    """Accept the best of several step widths: kinks of relu and rounding spoil single ones."""
    assert callable(along)
    widths = (1e-4, 1e-5, 1e-6, 1e-7)
    found = [(along(width) - along(-width)) / (2.0 * width) for width in widths]
    scale = max(1.0, abs(slope), abs(along(0.0)))
    assert min(abs(value - slope) for value in found) <= 1e-5 * scale


@given(ir=blueprints(), seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_copies_and_pickles_compute_the_same_and_share_nothing(ir: BlueprintIR, seed: int) -> None:
    kernel = kernel_of(ir, random_weights(ir, seed)).eval()
    x = torch.from_numpy(random_input(ir, batch=2, extent=SHORTEST_EXTENT, seed=seed))
    expected = kernel(x)
    twins = (copy.deepcopy(kernel), pickle.loads(pickle.dumps(kernel)))
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter.zero_()
    for twin in twins:
        assert torch.equal(twin(x), expected)
        assert twin.ir == ir


@given(ir=blueprints(zeros=False), seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_causal_tokens_never_see_later_ones(ir: BlueprintIR, seed: int) -> None:
    if ir.layout is not Layout.TOKENS or any(node.attrs.get("causal") is False for node in ir.nodes):
        return
    kernel = kernel_of(ir, random_weights(ir, seed))
    x = torch.from_numpy(random_input(ir, batch=2, extent=8, seed=seed))
    changed = x.clone()
    changed[:, 5:] += 1.0
    assert torch.allclose(kernel(x)[:, :5], kernel(changed)[:, :5], rtol=1e-12, atol=1e-12)


def bottleneck() -> BlueprintIR:
    return build(
        lambda g, site: g.conv(g.gelu(g.batch_norm(g.conv(g.input, out=4, kernel=3, bias=False))), out=3, kernel=1),
        Site(Layout.CHANNELS_2D, 3),
        "bottleneck",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_kernel_keeps_type_shape_and_memory_format_of_its_input(dtype: torch.dtype) -> None:
    kernel = KernelModule(bottleneck(), initial_state(bottleneck(), seed=0, dtype=dtype))
    x = torch.ones(2, 3, 6, 5, dtype=dtype).to(memory_format=torch.channels_last)
    y = kernel(x)
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_a_kernel_moves_to_another_type_like_any_module() -> None:
    kernel = KernelModule(bottleneck(), initial_state(bottleneck(), seed=0, dtype="float32")).double()
    assert {tensor.dtype for tensor in kernel.state_dict().values()} == {torch.float64}
    assert kernel(torch.ones(2, 3, 6, 5, dtype=torch.float64)).dtype is torch.float64


def test_features_may_have_any_number_of_leading_axes() -> None:
    ir = build(lambda g, site: g.linear(g.layer_norm(g.input), out=3), Site(Layout.FEATURES, 3), "drawn")
    weights = random_weights(ir, 0)
    kernel = kernel_of(ir, weights)
    for shape in ((3,), (2, 3), (2, 4, 3), (2, 4, 5, 3)):
        x = np.random.default_rng(0).normal(size=shape)
        assert_equal(kernel(torch.from_numpy(x)), evaluate(ir, weights, x))


@given(ir=blueprints())
@settings(max_examples=40, deadline=None)
def test_the_state_dict_has_the_names_and_order_of_the_blueprint(ir: BlueprintIR) -> None:
    state = initial_state(ir, seed=0, dtype="float32")
    assert list(KernelModule(ir, state).state_dict()) == list(ir.tensors)


def test_a_kernel_compiles_to_one_whole_graph() -> None:
    torch._dynamo.reset()
    graphs: list[int] = []

    def counted(graph: torch.fx.GraphModule, example: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(len(example))
        return graph

    kernel = KernelModule(bottleneck(), initial_state(bottleneck(), seed=0, dtype="float64")).eval()
    compiled = torch.compile(kernel, fullgraph=True, backend=counted)
    x = torch.linspace(-1, 1, 2 * 3 * 6 * 5, dtype=torch.float64).reshape(2, 3, 6, 5)
    assert torch.equal(compiled(x), kernel(x))
    assert torch.equal(compiled(x), kernel(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("fault", ["missing", "extra", "misshapen", "mixed"])
def test_tensors_that_are_not_the_blueprints_are_refused(fault: str) -> None:
    state = initial_state(bottleneck(), seed=0, dtype="float32")
    if fault == "missing":
        del state["conv2.bias"]
    elif fault == "extra":
        state["conv9.bias"] = torch.zeros(3)
    elif fault == "misshapen":
        state["conv2.bias"] = torch.zeros(4)
    else:
        state["conv2.bias"] = state["conv2.bias"].double()
    with pytest.raises(ContractError):
        KernelModule(bottleneck(), state)
