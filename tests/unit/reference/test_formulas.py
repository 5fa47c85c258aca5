"""The oracle itself, against sums written out by hand."""

import math

import numpy as np
import pytest

from esper.errors import ConfigError, ContractError, NotFound
from esper.ir import BlueprintIR, Graph, Handle, Layout, Site, build
from esper.ir.builder import Design
from esper.reference import buffers_after, evaluate, register_formula
from esper.reference.formulas import formula_of


def drawn(design: Design, layout: Layout, channels: int) -> BlueprintIR:
    return build(design, Site(layout, channels), "drawn")


def test_linear_is_a_matrix_times_a_vector_plus_a_bias() -> None:
    ir = drawn(lambda g, site: g.linear(g.input, out=2), Layout.FEATURES, 2)
    weights = {"linear1.weight": np.array([[1.0, 2.0], [3.0, 4.0]]), "linear1.bias": np.array([10.0, 20.0])}
    assert evaluate(ir, weights, np.array([[1.0, -1.0]])).tolist() == [[9.0, 19.0]]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("zeros", [12.0, 123.0, 234.0, 340.0]),
        ("reflect", [212.0, 123.0, 234.0, 343.0]),
        ("replicate", [112.0, 123.0, 234.0, 344.0]),
        ("circular", [412.0, 123.0, 234.0, 341.0]),
    ],
)
def test_convolution_reads_its_neighbours_in_order_and_pads_as_told(mode: str, expected: list[float]) -> None:
    ir = drawn(lambda g, site: g.conv(g.input, out=1, kernel=3, padding_mode=mode, bias=False), Layout.CHANNELS_1D, 1)
    result = evaluate(ir, {"conv1.weight": np.array([[[100.0, 10.0, 1.0]]])}, np.array([[[1.0, 2.0, 3.0, 4.0]]]))
    assert result[0, 0].tolist() == expected


def test_dilation_spreads_the_taps() -> None:
    ir = drawn(lambda g, site: g.conv(g.input, out=1, kernel=3, dilation=2, bias=False), Layout.CHANNELS_1D, 1)
    result = evaluate(ir, {"conv1.weight": np.array([[[100.0, 10.0, 1.0]]])}, np.array([[[1.0, 2.0, 3.0, 4.0, 5.0]]]))
    assert result[0, 0].tolist() == [13.0, 24.0, 135.0, 240.0, 350.0]


def test_groups_keep_channels_apart() -> None:
    ir = drawn(lambda g, site: g.conv(g.input, out=2, kernel=1, groups=2, bias=False), Layout.CHANNELS_1D, 2)
    result = evaluate(ir, {"conv1.weight": np.array([[[2.0]], [[3.0]]])}, np.array([[[1.0], [10.0]]]))
    assert result[0, :, 0].tolist() == [2.0, 30.0]


def test_a_kernel_of_an_image_is_indexed_row_first() -> None:
    ir = drawn(lambda g, site: g.conv(g.input, out=1, kernel=3, bias=False), Layout.CHANNELS_2D, 1)
    kernel = np.zeros((1, 1, 3, 3))
    kernel[0, 0, 0, 1] = 1.0  # the tap above the centre
    image = np.arange(6.0).reshape(1, 1, 3, 2)
    assert evaluate(ir, {"conv1.weight": kernel}, image)[0, 0].tolist() == [[0.0, 0.0], [0.0, 1.0], [2.0, 3.0]]


def norm_weights(node: str, channels: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return {f"{node}.weight": np.full(channels, 2.0), f"{node}.bias": np.full(channels, 1.0)}


def test_layer_norm_takes_mean_and_spread_over_the_channels_of_one_position() -> None:
    ir = drawn(lambda g, site: g.layer_norm(g.input), Layout.CHANNELS_1D, 2)
    x = np.array([[[1.0, 0.0], [3.0, 0.0]]])
    unit = 1.0 / math.sqrt(1.0 + 1e-5)
    expected = [[1.0 - 2.0 * unit, 1.0], [1.0 + 2.0 * unit, 1.0]]
    assert evaluate(ir, norm_weights("layer_norm1", 2), x)[0] == pytest.approx(np.array(expected), abs=1e-14)


def test_group_norm_takes_mean_and_spread_over_a_group_and_all_positions() -> None:
    ir = drawn(lambda g, site: g.group_norm(g.input, groups=2), Layout.CHANNELS_1D, 2)
    x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    unit = [1.0 / math.sqrt(1.0 + 1e-5), 10.0 / math.sqrt(100.0 + 1e-5)]
    expected = [[1.0 - 2.0 * u, 1.0 + 2.0 * u] for u in unit]
    assert evaluate(ir, norm_weights("group_norm1", 2), x)[0] == pytest.approx(np.array(expected), abs=1e-14)


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    ir = drawn(lambda g, site: g.rms_norm(g.input), Layout.FEATURES, 2)
    result = evaluate(ir, {"rms_norm1.weight": np.array([1.0, 10.0])}, np.array([[3.0, 4.0]]))
    root = math.sqrt(12.5 + 1e-5)
    assert result[0] == pytest.approx(np.array([3.0 / root, 40.0 / root]), abs=1e-14)


def test_batch_norm_uses_the_batch_in_training_and_its_memory_in_evaluation() -> None:
    ir = drawn(lambda g, site: g.batch_norm(g.input), Layout.CHANNELS_1D, 1)
    weights = norm_weights("batch_norm1", 1) | {
        "batch_norm1.running_mean": np.array([5.0]),
        "batch_norm1.running_var": np.array([4.0]),
    }
    x = np.array([[[1.0]], [[3.0]]])
    unit = 1.0 / math.sqrt(1.0 + 1e-5)
    trained = evaluate(ir, weights, x, training=True).ravel()
    assert trained == pytest.approx(np.array([1.0 - 2.0 * unit, 1.0 + 2.0 * unit]), abs=1e-14)
    half = 2.0 / math.sqrt(4.0 + 1e-5)
    assert evaluate(ir, weights, x).ravel() == pytest.approx(np.array([1.0 - 4.0 * half, 1.0 - 2.0 * half]), abs=1e-14)
    after = buffers_after(ir, weights, x)
    assert after["batch_norm1.running_mean"].tolist() == pytest.approx([0.9 * 5.0 + 0.1 * 2.0])
    assert after["batch_norm1.running_var"].tolist() == pytest.approx([0.9 * 4.0 + 0.1 * 2.0])


@pytest.mark.parametrize(
    ("op", "x", "expected"),
    [
        ("relu", -2.0, 0.0),
        ("relu", 2.0, 2.0),
        ("gelu", 1.0, 0.8413447460685429),
        ("gelu", -1.0, -0.15865525393145707),
        ("silu", 1.0, 0.7310585786300049),
        ("sigmoid", 0.0, 0.5),
        ("sigmoid", -1000.0, 0.0),
        ("tanh", 0.5, 0.46211715726000973),
    ],
)
def test_a_nonlinearity_has_its_textbook_value(op: str, x: float, expected: float) -> None:
    ir = drawn(lambda g, site: g.apply(op, g.input), Layout.FEATURES, 1)
    assert evaluate(ir, {}, np.array([[x]]))[0, 0] == pytest.approx(expected, abs=1e-15)


def test_add_mul_and_scale_are_what_they_say() -> None:
    def design(g: Graph, site: Site) -> Handle:
        return g.scale(g.input * (g.input + g.input), value=-0.5)

    assert evaluate(drawn(design, Layout.FEATURES, 1), {}, np.array([[3.0]]))[0, 0] == -9.0


def attended(causal: bool) -> list[float]:
    """Two tokens of one channel, queries and keys the tokens themselves."""
    ir = drawn(lambda g, site: g.attention(g.input, g.input, g.input, heads=1, causal=causal), Layout.TOKENS, 1)
    return [float(value) for value in evaluate(ir, {}, np.array([[[1.0], [2.0]]])).ravel()]


def test_attention_is_a_softmax_weighted_mean() -> None:
    first = (1.0 * math.exp(1.0) + 2.0 * math.exp(2.0)) / (math.exp(1.0) + math.exp(2.0))
    second = (1.0 * math.exp(2.0) + 2.0 * math.exp(4.0)) / (math.exp(2.0) + math.exp(4.0))
    assert attended(causal=False) == pytest.approx([first, second], abs=1e-14)
    assert attended(causal=True) == pytest.approx([1.0, second], abs=1e-14)


def test_heads_attend_apart_and_scores_shrink_with_the_root_of_a_heads_width() -> None:
    ir = drawn(lambda g, site: g.attention(g.input, g.input, g.input, heads=2, causal=False), Layout.TOKENS, 4)
    x = np.zeros((1, 2, 4))
    x[0, 1, 0] = 2.0
    share = math.exp(4.0 / math.sqrt(2.0)) / (1.0 + math.exp(4.0 / math.sqrt(2.0)))
    result = evaluate(ir, {}, x)[0]
    assert result[1, 0] == pytest.approx(2.0 * share, abs=1e-14)
    assert result[:, 2:].tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 3), (2, 3, 4, 5)])
def test_an_input_of_another_layout_is_refused(shape: tuple[int, ...]) -> None:
    ir = drawn(lambda g, site: g.gelu(g.input), Layout.CHANNELS_1D, 3)
    with pytest.raises(ContractError, match="does not fit"):
        evaluate(ir, {}, np.zeros(shape))


def test_a_missing_weight_is_named() -> None:
    ir = drawn(lambda g, site: g.linear(g.input, out=3), Layout.FEATURES, 3)
    with pytest.raises(ContractError, match=r"linear1\.bias"):
        evaluate(ir, {"linear1.weight": np.zeros((3, 3))}, np.zeros((1, 3)))


def test_the_closed_set_cannot_be_replaced_and_unknown_formulas_are_not_found() -> None:
    with pytest.raises(ConfigError, match="closed set"):
        register_formula("gelu", formula_of("relu"))
    with pytest.raises(NotFound, match=r"acme\.fft"):
        formula_of("acme.fft")
