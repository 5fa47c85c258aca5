"""Law 2, decided statically."""

from collections.abc import Callable

import pytest

from esper.errors import InvalidBlueprint
from esper.ir import BlueprintIR, Graph, Handle, Layout, Severity, Site, build, check_birth, lint, liveness

TOKENS = Site(Layout.TOKENS, 8)
IMAGE = Site(Layout.CHANNELS_2D, 8)


def drawn(design: Callable[[Graph, Site], Handle], site: Site = TOKENS) -> BlueprintIR:
    return build(design, site, "drawn")


def zero(g: Graph, x: Handle) -> Handle:
    return g.pointwise(x, out=8, init="zero")


def hidden(g: Graph, x: Handle) -> Handle:
    return g.gelu(g.pointwise(x, out=16))


def branched(g: Graph, site: Site) -> Handle:
    h = g.pointwise(g.input, out=8)
    return zero(g, g.layer_norm(h) + g.gelu(h))


GOOD: dict[str, Callable[[Graph, Site], Handle]] = {
    "a perceptron with a zero last layer": lambda g, site: zero(g, hidden(g, g.input)),
    "a zero linear alone": lambda g, site: zero(g, g.input),
    "two zero factors side by side": lambda g, site: zero(g, hidden(g, g.input)) + zero(g, g.gelu(g.input)),
    "a zero value under a live gate": lambda g, site: zero(g, g.input) * g.sigmoid(g.pointwise(g.input, out=8)),
    "a zero factor inside a smooth function": lambda g, site: g.tanh(zero(g, hidden(g, g.input))),
    "a zero factor before a live one": lambda g, site: g.pointwise(
        g.gelu(g.pointwise(hidden(g, g.input), out=16, init="zero")), out=8, bias=False
    ),
    "a query bias": lambda g, site: zero(
        g,
        g.attention(
            g.pointwise(g.input, out=8),
            g.pointwise(g.input, out=8, bias=False),
            g.pointwise(g.input, out=8),
            heads=2,
            causal=False,
        ),
    ),
    "a bias that a norm and another branch see": branched,
    "a bias before rms_norm": lambda g, site: zero(g, g.rms_norm(g.pointwise(g.input, out=8))),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("site", [TOKENS, IMAGE], ids=["tokens", "image"])
def test_a_design_with_one_zero_factor_on_each_path_is_born_well(name: str, site: Site) -> None:
    ir = drawn(GOOD[name], site)
    check_birth(ir)
    assert liveness(ir).is_neutral


def residual_pair(g: Graph, site: Site) -> Handle:
    """The second zero factor hides the first from the output."""
    return zero(g, hidden(g, g.input + zero(g, hidden(g, g.input))))


def cut_off(g: Graph, site: Site) -> Handle:
    return zero(g, g.input) + g.scale(g.pointwise(g.input, out=8), value=0.0)


BAD: dict[str, tuple[Callable[[Graph, Site], Handle], str, str, str]] = {
    "no zero factor": (
        lambda g, site: g.pointwise(hidden(g, g.input), out=8),
        "$.nodes[2]",
        "not-neutral",
        "no zero factor",
    ),
    "no operation at all": (lambda g, site: g.input, "$.output", "not-neutral", "not zero before the first step"),
    "one path without a zero factor": (
        lambda g, site: zero(g, g.input) + g.gelu(g.input),
        "$.nodes[2]",
        "not-neutral",
        "some path",
    ),
    "two zero factors in series": (
        lambda g, site: zero(g, g.gelu(zero(g, g.input))),
        "$.nodes[0]",
        "two-zero-factors",
        "no gradient reaches it",
    ),
    "a zero factor hidden behind another": (residual_pair, "$.nodes[2]", "two-zero-factors", "no gradient reaches it"),
    "a product of two zeros": (
        lambda g, site: zero(g, g.input) * zero(g, g.gelu(g.input)),
        "$.nodes[0]",
        "two-zero-factors",
        "multiplied by",
    ),
    "relu after the zero factor": (
        lambda g, site: g.relu(zero(g, g.input)),
        "$.nodes[0]",
        "two-zero-factors",
        "slope zero at zero",
    ),
    "a scale of zero": (
        lambda g, site: g.scale(zero(g, g.input), value=0.0),
        "$.nodes[0]",
        "two-zero-factors",
        "is zero",
    ),
    "a norm after the zero factor": (
        lambda g, site: g.layer_norm(zero(g, g.input)),
        "$.nodes[1]",
        "norm-of-zero",
        "full strength",
    ),
    "a key bias": (
        lambda g, site: zero(
            g,
            g.attention(
                g.pointwise(g.input, out=8),
                g.pointwise(g.input, out=8),
                g.pointwise(g.input, out=8),
                heads=2,
                causal=False,
            ),
        ),
        "$.nodes[1]",
        "redundant-bias",
        "ignores a shift of keys",
    ),
    "a bias before a norm": (
        lambda g, site: zero(g, g.gelu(g.layer_norm(g.pointwise(g.input, out=8)))),
        "$.nodes[0]",
        "redundant-bias",
        "layer_norm follows",
    ),
    "a bias before a scaled norm": (
        lambda g, site: zero(g, g.layer_norm(g.scale(g.pointwise(g.input, out=8), value=2.0))),
        "$.nodes[0]",
        "redundant-bias",
        "layer_norm follows",
    ),
    "a norm of one channel": (
        lambda g, site: zero(g, g.gelu(g.layer_norm(g.pointwise(g.input, out=1, bias=False)))),
        "$.nodes[3]",
        "two-zero-factors",
        "layer_norm 'layer_norm1' makes it so",
    ),
    "a branch that a scale of zero cuts off": (cut_off, "$.nodes[1]", "never-live", "scale 'scale1' is zero"),
    "an input that is ignored": (
        lambda g, site: zero(g, g.sigmoid(g.scale(g.input, value=0.0))),
        "$.nodes[2]",
        "ignores-input",
        "the same for every x",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_design_that_breaks_law_2_is_refused_with_its_place_and_reason(name: str) -> None:
    design, path, rule, reason = BAD[name]
    with pytest.raises(InvalidBlueprint) as refused:
        check_birth(drawn(design))
    first = lint(drawn(design))[0]
    assert refused.value.code == "ESP-3110"
    assert refused.value.path == first.path
    assert refused.value.todo
    assert first.severity is Severity.ERROR
    assert (first.path, first.rule) == (path, rule)
    assert reason in first.why


def test_a_bias_before_batch_norm_is_refused() -> None:
    ir = drawn(lambda g, site: zero(g, g.gelu(g.batch_norm(g.conv(g.input, out=8, kernel=3)))), IMAGE)
    with pytest.raises(InvalidBlueprint, match="batch_norm follows"):
        check_birth(ir)


def test_a_norm_before_batch_norm_is_refused() -> None:
    ir = drawn(lambda g, site: zero(g, g.gelu(g.batch_norm(g.scale(g.rms_norm(g.input), value=2.0)))), IMAGE)
    assert [finding.rule for finding in lint(ir)] == ["redundant-norm"]
    with pytest.raises(InvalidBlueprint, match="scales each channel anew"):
        check_birth(ir)


def test_two_kinds_of_waste_are_only_warned_about() -> None:
    ir = drawn(lambda g, site: zero(g, g.linear(g.scale(g.input, value=1.0), out=32)))
    findings = lint(ir)
    assert {finding.rule for finding in findings} == {"idle-scale", "stacked-maps"}
    assert all(finding.severity is Severity.WARNING for finding in findings)
    check_birth(ir)


def test_liveness_tells_when_each_parameter_wakes() -> None:
    life = liveness(drawn(lambda g, site: zero(g, hidden(g, g.input))))
    assert life.steps[0].live == {"linear2.weight", "linear2.bias"}
    assert life.steps[1].live == {"linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"}
    assert life.zero_factors == {"linear2.weight", "linear2.bias"}
