"""The operations that every Esper knows, each with its formula."""

from math import prod

from esper.ir.attributes import BoolAttr, ChoiceAttr, FloatAttr, IntAttr, RuleBroken
from esper.ir.birth import Affine, Attended, Averaged, Elementwise, Normalized, Product, Scaled, Sum, Use
from esper.ir.caps import CAPS
from esper.ir.spec import Extent, OpSpec, TensorSpec, needs_positions
from esper.ir.types import Layout

NORM_EPS = 1e-5
"""Added to every variance or mean square before its root is taken; torch's default for layer norm."""
BATCH_NORM_MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics; torch's default."""

_LAST = frozenset({Layout.FEATURES, Layout.TOKENS})
_FIRST = frozenset({Layout.CHANNELS_1D, Layout.CHANNELS_2D})
_WIDTH = IntAttr(1, CAPS.channels)
_INIT = ChoiceAttr(("standard", "zero"), default="standard")
# A kernel of 63 spans any feature map for which a convolution is the right tool; larger ones are resource bombs.
_KERNEL = IntAttr(1, 63, odd=True)
_DILATION = IntAttr(1, 64, default=1)
_PADDING = ChoiceAttr(("zeros", "reflect", "replicate", "circular"), default="zeros")


def padding_of(use: Use) -> int:
    """Return the positions added on either side so that a convolution keeps the extent."""
    return use.attrs.integer("dilation") * (use.attrs.integer("kernel") - 1) // 2


def _affine(use: Use, shape: tuple[int, ...], fan_in: int) -> tuple[TensorSpec, ...]:
    drawn = fan_in if use.attrs.choice("init") == "standard" else None
    weight = TensorSpec("weight", shape, fan_in=drawn)
    return (weight, TensorSpec("bias", shape[:1], fan_in=drawn)) if use.attrs.flag("bias") else (weight,)


def _out(use: Use) -> int:
    return use.attrs.integer("out")


def _linear_tensors(use: Use) -> tuple[TensorSpec, ...]:
    return _affine(use, (_out(use), use.inputs[0]), use.inputs[0])


def _linear_flops(use: Use, extent: Extent) -> int:
    return 2 * prod(extent) * use.inputs[0] * _out(use)


def _mul_pooled(use: Use) -> bool:
    return bool(use.pooled) and all(use.pooled)


def _mean_pooled(use: Use) -> bool:
    return True


def _conv_pooled(use: Use) -> bool:
    if any(use.pooled) and use.attrs.integer("kernel") != 1:
        raise RuleBroken("one position for all has no neighbours", attr="kernel")
    return any(use.pooled)


def _conv_width(use: Use) -> int:
    groups = use.attrs.integer("groups")
    for channels in (use.inputs[0], _out(use)):
        if channels % groups:
            raise RuleBroken(f"{groups} groups do not divide {channels} channels", attr="groups")
    return _out(use)


def _conv_tensors(use: Use) -> tuple[TensorSpec, ...]:
    per_group = use.inputs[0] // use.attrs.integer("groups")
    taps = (use.attrs.integer("kernel"),) * use.layout.rank
    return _affine(use, (_out(use), per_group, *taps), per_group * prod(taps))


def _conv_flops(use: Use, extent: Extent) -> int:
    return 2 * prod(extent) * prod(_conv_tensors(use)[0].shape)


def _conv_min_extent(use: Use) -> int:
    needs = {"reflect": padding_of(use) + 1, "circular": padding_of(use)}
    return max(1, needs.get(use.attrs.choice("padding_mode"), 1))


def _norm_tensors(use: Use) -> tuple[TensorSpec, ...]:
    shape = (use.inputs[0],)
    return TensorSpec("weight", shape, fill=1.0), TensorSpec("bias", shape)


def _batch_norm_tensors(use: Use) -> tuple[TensorSpec, ...]:
    shape = (use.inputs[0],)
    mean = TensorSpec("running_mean", shape, trainable=False)
    return *_norm_tensors(use), mean, TensorSpec("running_var", shape, fill=1.0, trainable=False)


def _rms_norm_tensors(use: Use) -> tuple[TensorSpec, ...]:
    return (TensorSpec("weight", (use.inputs[0],), fill=1.0),)


def _group_norm_width(use: Use) -> int:
    groups = use.attrs.integer("groups")
    if use.inputs[0] % groups:
        raise RuleBroken(f"{groups} groups do not divide {use.inputs[0]} channels", attr="groups")
    return use.inputs[0]


def _attention_width(use: Use) -> int:
    heads = use.attrs.integer("heads")
    query, key, value = use.inputs
    if query != key:
        raise RuleBroken(f"queries have {query} channels and keys {key}; their products need as many")
    for channels in (query, value):
        if channels % heads:
            raise RuleBroken(f"{heads} heads do not divide {channels} channels", attr="heads")
    if use.attrs.flag("causal") and use.layout is not Layout.TOKENS:
        raise RuleBroken("only tokens have an order that attention could respect", attr="causal")
    return value


def _attention_flops(use: Use, extent: Extent) -> int:
    return 2 * prod(extent) ** 2 * (use.inputs[0] + use.inputs[2])


LINEAR = OpSpec(
    # y = x W^T + b, on the last axis.
    name="linear",
    layouts=_LAST,
    attrs={"out": _WIDTH, "bias": BoolAttr(default=True), "init": _INIT},
    width=_out,
    tensors=_linear_tensors,
    flops=_linear_flops,
    birth=Affine(),
)
CONV = OpSpec(
    # Cross-correlation with stride 1, padded so that the extent is kept.
    name="conv",
    layouts=_FIRST,
    attrs={
        "out": _WIDTH,
        "kernel": _KERNEL,
        "groups": IntAttr(1, CAPS.channels, default=1),
        "dilation": _DILATION,
        "padding_mode": _PADDING,
        "bias": BoolAttr(default=True),
        "init": _INIT,
    },
    width=_conv_width,
    pooled=_conv_pooled,
    tensors=_conv_tensors,
    flops=_conv_flops,
    min_extent=_conv_min_extent,
    birth=Affine(),
)
BATCH_NORM = OpSpec(
    # Statistics over examples and positions. Not for features and tokens: there they would mix in future positions.
    name="batch_norm",
    layouts=_FIRST,
    pooled=needs_positions,
    tensors=_batch_norm_tensors,
    birth=Normalized(),
    bounding=True,
)
GROUP_NORM = OpSpec(
    # Statistics over the channels of a group and all positions of one example, so not for tokens either.
    name="group_norm",
    layouts=_FIRST,
    attrs={"groups": IntAttr(1, CAPS.channels)},
    width=_group_norm_width,
    pooled=needs_positions,
    tensors=_norm_tensors,
    birth=Normalized(),
    bounding=True,
)
LAYER_NORM = OpSpec(
    # (x - mean) / sqrt(var + eps) * weight + bias over the channels of one position.
    name="layer_norm",
    tensors=_norm_tensors,
    birth=Normalized(over_channels=True),
    bounding=True,
)
RMS_NORM = OpSpec(
    # x / sqrt(mean(x^2) + eps) * weight over the channels of one position.
    name="rms_norm",
    tensors=_rms_norm_tensors,
    birth=Normalized(centres=False, over_channels=True),
    bounding=True,
)
ATTENTION = OpSpec(
    # softmax(q k^T / sqrt(d)) v for each head; inputs are queries, keys and values.
    name="attention",
    arity=3,
    layouts=frozenset({Layout.TOKENS, *_FIRST}),
    attrs={"heads": IntAttr(1, 1024), "causal": BoolAttr()},
    width=_attention_width,
    pooled=needs_positions,
    flops=_attention_flops,
    birth=Attended(),
)
BUILT_IN = (
    LINEAR,
    CONV,
    BATCH_NORM,
    GROUP_NORM,
    LAYER_NORM,
    RMS_NORM,
    OpSpec("relu", birth=Elementwise(flat_at_zero=True)),
    OpSpec("gelu"),
    OpSpec("silu"),
    OpSpec("sigmoid", birth=Elementwise(zero_to_zero=False), bounding=True),
    OpSpec("tanh", bounding=True),
    OpSpec("add", arity=2, birth=Sum()),
    OpSpec("mul", arity=2, pooled=_mul_pooled, birth=Product()),
    # Not for features, which have no positions, nor for tokens: there it would mix in future ones.
    OpSpec("position_mean", layouts=_FIRST, pooled=_mean_pooled, birth=Averaged()),
    OpSpec("scale", attrs={"value": FloatAttr(1e6)}, birth=Scaled()),
    ATTENTION,
)
