"""The formula of each operation, in numpy float64."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from esper.errors import ConfigError, NotFound, VersionTaken
from esper.ir import Use, ops
from esper.ir.opset import BATCH_NORM_MOMENTUM, NORM_EPS

Array: TypeAlias = NDArray[np.float64]
Weights: TypeAlias = Mapping[str, Array]
Formula: TypeAlias = Callable[[Use, Weights, Sequence[Array], bool], Array]
"""From a node's place, tensors and inputs, and whether it is training, to its output."""

_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _linear(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    product: Array = inputs[0] @ own["weight"].T
    return product + own["bias"] if "bias" in own else product


def _conv(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    """Add up, tap by tap, the shifted input times the weight of the tap."""
    x, weight = inputs[0], own["weight"]
    spacing, groups = use.attrs.integer("dilation"), use.attrs.integer("groups")
    kernel, extent = weight.shape[2:], x.shape[2:]
    padded = _padded(x, [spacing * (taps - 1) // 2 for taps in kernel], use.attrs.choice("padding_mode"))
    by_group = padded.reshape(x.shape[0], groups, x.shape[1] // groups, *padded.shape[2:])
    maps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    total = np.zeros((x.shape[0], groups, maps.shape[1], math.prod(extent)))
    for position, tap in enumerate(itertools.product(*map(range, kernel))):
        window = (slice(spacing * at, spacing * at + size) for at, size in zip(tap, extent, strict=True))
        shifted = by_group[(slice(None), slice(None), slice(None), *window)]
        total += maps[..., position] @ shifted.reshape(*by_group.shape[:3], -1)
    mapped = total.reshape(x.shape[0], weight.shape[0], *extent)
    return mapped + _by_channel(own["bias"], mapped) if "bias" in own else mapped


def _padded(x: Array, margins: Sequence[int], mode: str) -> Array:
    widths = [(0, 0), (0, 0), *((margin, margin) for margin in margins)]
    if mode == "zeros":
        return np.pad(x, widths)
    return np.pad(x, widths, mode=_PAD_MODES[mode])  # type: ignore[call-overload, no-any-return]


def _by_channel(vector: Array, x: Array) -> Array:
    """Shape a vector so that it broadcasts along axis 1."""
    return vector.reshape(1, -1, *(1,) * (x.ndim - 2))


def _batch_norm(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    x = inputs[0]
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axis=axes) if training else own["running_mean"]
    variance = x.var(axis=axes) if training else own["running_var"]
    normal: Array = (x - _by_channel(mean, x)) / np.sqrt(_by_channel(variance, x) + NORM_EPS)
    return _affine(normal, own)


def _affine(normal: Array, own: Weights) -> Array:
    return normal * _by_channel(own["weight"], normal) + _by_channel(own["bias"], normal)


def running_statistics(own: Weights, x: Array) -> dict[str, Array]:
    """Return the running mean and the running (unbiased) variance after a batch."""
    axes = (0, *range(2, x.ndim))
    fresh = {"running_mean": x.mean(axis=axes), "running_var": x.var(axis=axes, ddof=1)}
    return {name: own[name] + BATCH_NORM_MOMENTUM * (fresh[name] - own[name]) for name in fresh}


def _group_norm(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    x = inputs[0]
    groups = use.attrs.integer("groups")
    rows = x.reshape(x.shape[0], groups, -1)
    normal = ((rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + NORM_EPS)).reshape(x.shape)
    return _affine(normal, own)


def _layer_norm(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    x = _channels_last(use, inputs[0])
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + NORM_EPS)
    return _channels_back(use, normal * own["weight"] + own["bias"])


def _rms_norm(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    x = _channels_last(use, inputs[0])
    return _channels_back(use, x / np.sqrt((x**2).mean(-1, keepdims=True) + NORM_EPS) * own["weight"])


def _channels_last(use: Use, x: Array) -> Array:
    return np.moveaxis(x, 1, -1) if use.layout.is_channels_first else x


def _channels_back(use: Use, x: Array) -> Array:
    return np.moveaxis(x, -1, 1) if use.layout.is_channels_first else x


def _relu(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    return np.maximum(inputs[0], 0.0)


def _gelu(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    x = inputs[0]
    below: Array = 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
    return x * below


def _sigmoid(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    return _logistic(inputs[0])


def _logistic(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    tail = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, tail) / (1.0 + tail)


def _silu(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    return inputs[0] * _logistic(inputs[0])


def _tanh(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    return np.tanh(inputs[0])


def _add(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    return inputs[0] + inputs[1]


def _mul(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    return inputs[0] * inputs[1]


def _position_mean(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    x = inputs[0]
    mean: Array = x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)
    return mean


def _scale(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    return inputs[0] * use.attrs.number("value")


def _attention(use: Use, own: Weights, inputs: Sequence[Array], training: bool) -> Array:
    """Return softmax(q k^T / sqrt(d)) v, head by head."""
    shape = inputs[2].shape
    query, key, value = (_positions(use, x) for x in inputs)
    heads = use.attrs.integer("heads")
    parts = [
        _attended(q, k, v, use.attrs.flag("causal"))
        for q, k, v in zip(*(np.split(x, heads, axis=-1) for x in (query, key, value)), strict=True)
    ]
    joined = np.concatenate(parts, axis=-1)
    return np.moveaxis(joined, -1, 1).reshape(shape) if use.layout.is_channels_first else joined


def _positions(use: Use, x: Array) -> Array:
    """Return (N, positions, C)."""
    return np.moveaxis(x.reshape(*x.shape[:2], -1), 1, -1) if use.layout.is_channels_first else x


def _attended(query: Array, key: Array, value: Array, causal: bool) -> Array:
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Array = raised / raised.sum(axis=-1, keepdims=True)
    attended: Array = shares @ value
    return attended


_FORMULAS: dict[str, Formula] = {
    "linear": _linear,
    "conv": _conv,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "relu": _relu,
    "gelu": _gelu,
    "silu": _silu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "add": _add,
    "mul": _mul,
    "position_mean": _position_mean,
    "scale": _scale,
    "attention": _attention,
}


def formula_of(op: str) -> Formula:
    """Return the formula of an operation.

    Raises:
        NotFound: If it is an extension whose formula was not installed.
    """
    if op not in _FORMULAS:
        raise NotFound(f"operation {op!r} has no formula", todo="Install it with esper.reference.register_formula.")
    return _FORMULAS[op]


def register_formula(op: str, formula: Formula) -> None:
    """Install the numpy formula of an extension.

    Args:
        op: Name of an operation that `esper.ir.ops.register` installed.
        formula: From place, tensors, inputs and training to the output.

    Raises:
        ConfigError: If the operation belongs to the closed set.
        NotFound: If there is no such operation.
        VersionTaken: If another formula is installed.
    """
    if ops.get(op).trusted:
        raise ConfigError(f"the formula of {op!r} cannot be replaced", why="it belongs to the closed set")
    if _FORMULAS.setdefault(op, formula) is not formula:
        raise VersionTaken(f"operation {op!r} has a formula already", todo="Unregister it first.")


def unregister_formula(op: str) -> None:
    """Take the formula of an extension out again; nothing happens where there is none.

    Raises:
        ConfigError: If the operation belongs to the closed set.
    """
    if op in ops.names() and ops.get(op).trusted:
        raise ConfigError(f"the formula of {op!r} cannot be removed", why="it belongs to the closed set")
    _FORMULAS.pop(op, None)
