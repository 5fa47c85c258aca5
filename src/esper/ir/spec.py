"""What an operation of the op table declares about itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from esper.ir.attributes import AttrSpec, RuleBroken
from esper.ir.birth import BirthRule, Elementwise, Use
from esper.ir.types import Layout

Extent = tuple[int, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that an operation owns.

    Attributes:
        name: Its name within the node, such as ``weight``.
        shape: Its shape.
        fan_in: Inputs that one output sums over: drawn from U(-1/sqrt(fan_in), 1/sqrt(fan_in)); None: filled.
        fill: What it is filled with where ``fan_in`` is None.
        trainable: False for buffers.
    """

    name: str
    shape: tuple[int, ...]
    fan_in: int | None = None
    fill: float = 0.0
    trainable: bool = True

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def starts_nonzero(self) -> bool:
        """Whether it differs from zero at birth."""
        return self.fan_in is not None or self.fill != 0.0


def same_width(use: Use) -> int:
    """Return the common width of all inputs, which is kept."""
    if len(set(use.inputs)) != 1:
        raise RuleBroken(f"its inputs have {' and '.join(map(str, use.inputs))} channels, and must have as many")
    return use.inputs[0]


def like_inputs(use: Use) -> bool:
    """Return whether all inputs have one position for all; where only some have, they do not fit."""
    if len(set(use.pooled)) > 1:
        raise RuleBroken("one input has one position for all, another each its own; only mul takes both")
    return any(use.pooled)


def needs_positions(use: Use) -> bool:
    """Work on maps that have their positions, and keep them."""
    if any(use.pooled):
        raise RuleBroken("it works on positions, of which a mean over them has left one")
    return False


def no_tensors(use: Use) -> tuple[TensorSpec, ...]:
    """Own nothing."""
    return ()


def no_flops(use: Use, extent: Extent) -> int:
    """Cost nothing: only multiply-adds are counted."""
    return 0


def any_extent(use: Use) -> int:
    """Return the smallest size of a position axis: 1."""
    return 1


@dataclass(frozen=True)
class OpSpec:
    """One operation, as data and rules.

    Attributes:
        name: Its name; extensions have a dot in it, such as ``acme.fft``.
        arity: Number of inputs.
        layouts: Layouts on which it works.
        attrs: Its attributes.
        width: Channels of its output; raises RuleBroken where the inputs or attributes do not fit.
        pooled: Whether its output has one position for all; raises RuleBroken where the inputs do not fit.
        tensors: Parameters and buffers it owns, in the order of ``state_dict``.
        flops: Forward FLOPs per example; a multiply-add counts 2, element-wise work nothing, as in torch's
            FlopCounterMode.
        min_extent: Smallest size of a position axis on which it works.
        birth: How zeros and gradients pass through it.
        bounding: Whether what it returns is of ordinary size, whatever enters.
        trusted: False for extensions.
    """

    name: str
    arity: int = 1
    layouts: frozenset[Layout] = frozenset(Layout)
    attrs: Mapping[str, AttrSpec] = field(default_factory=dict)
    width: Callable[[Use], int] = same_width
    pooled: Callable[[Use], bool] = like_inputs
    tensors: Callable[[Use], tuple[TensorSpec, ...]] = no_tensors
    flops: Callable[[Use, Extent], int] = no_flops
    min_extent: Callable[[Use], int] = any_extent
    birth: BirthRule = field(default_factory=Elementwise)
    bounding: bool = False
    trusted: bool = True
