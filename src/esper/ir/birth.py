"""How life spreads through each operation: the abstract rules behind law 2 (neutral and alive at birth).

A value is ZERO, STEADY (not zero, but the same whatever enters the blueprint) or VARIED. A gradient is NONE, CENTRED (its
sum over the positions is zero, for whatever input) or FULL. A bias that only ever receives centred gradients is redundant:
that is what makes a key bias, or a bias before a batch norm, useless.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from esper.ir.types import Attrs, Layout


class Value(Enum):
    """What is known about a node's output."""

    ZERO = "zero"
    STEADY = "steady"
    VARIED = "varied"


class Grad(Enum):
    """What is known about the gradient that reaches a node's output."""

    NONE = "none"
    CENTRED = "centred"
    FULL = "full"


@dataclass(frozen=True)
class Use:
    """An operation in its place: all that its rules may depend on.

    Attributes:
        layout: Layout of every value of the blueprint.
        inputs: Channels of each input.
        attrs: Its attributes, complete.
        pooled: Whether each input has one position for all; none has where it is empty.
    """

    layout: Layout
    inputs: tuple[int, ...]
    attrs: Attrs
    pooled: tuple[bool, ...] = ()

    def positions(self, extent: tuple[int, ...]) -> tuple[int, ...]:
        """Return at how many positions the operation works, on a map of an extent."""
        return (1,) * len(extent) if self.pooled and all(self.pooled) else extent


@dataclass(frozen=True)
class Flow:
    """What an operation's backward pass brings.

    Attributes:
        inputs: Gradient for each input.
        params: Whether each parameter gets a gradient.
    """

    inputs: tuple[Grad, ...]
    params: Mapping[str, bool]


Nonzero = Mapping[str, bool]
"""For each parameter of a node: whether it differs from zero now."""


class BirthRule(Protocol):
    """The abstract forward and backward pass of one operation."""

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Return what the operation makes of such inputs."""
        ...

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Return where a gradient at its output goes."""
        ...


def strongest(values: tuple[Value, ...]) -> Value:
    """Return the least certain of several values."""
    if Value.VARIED in values:
        return Value.VARIED
    return Value.STEADY if Value.STEADY in values else Value.ZERO


def merged(first: Grad, second: Grad) -> Grad:
    """Return the sum of two gradients."""
    if Grad.FULL in (first, second):
        return Grad.FULL
    return Grad.CENTRED if Grad.CENTRED in (first, second) else Grad.NONE


def _through(grad: Grad, factor: Value) -> Grad:
    """Return a gradient after multiplication, position by position, with a factor."""
    if grad is Grad.NONE or factor is Value.ZERO:
        return Grad.NONE
    return Grad.FULL if factor is Value.VARIED else grad


@dataclass(frozen=True)
class Elementwise:
    """A function of one value, element by element.

    Attributes:
        flat_at_zero: Whether its slope at zero is zero, as that of relu is.
        zero_to_zero: Whether it maps zero to zero.
    """

    flat_at_zero: bool = False
    zero_to_zero: bool = True

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Keep the kind of value, but for functions with f(0) != 0."""
        if inputs[0] is Value.ZERO and not self.zero_to_zero:
            return Value.STEADY
        return inputs[0]

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Multiply with the slope."""
        if inputs[0] is Value.ZERO:
            return Flow((Grad.NONE if self.flat_at_zero else grad,), {})
        return Flow((_through(grad, inputs[0]),), {})


class Sum:
    """The sum of its inputs."""

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Return the least certain input."""
        return strongest(inputs)

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Hand the gradient to every input."""
        return Flow((grad,) * len(inputs), {})


class Product:
    """The product of two inputs, element by element."""

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Return zero where a factor is zero."""
        return Value.ZERO if Value.ZERO in inputs else strongest(inputs)

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Multiply the gradient of each factor with the other factor."""
        left, right = inputs
        return Flow((_through(grad, right), _through(grad, left)), {})


class Averaged:
    """The mean over all positions."""

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Keep the kind of value."""
        return inputs[0]

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Share the gradient out evenly; its sum stays."""
        return Flow((grad,), {})


class Scaled:
    """A constant times its input."""

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Return zero where the constant is."""
        return inputs[0] if use.attrs.number("value") else Value.ZERO

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Pass the gradient on unless the constant is zero."""
        return Flow((grad if use.attrs.number("value") else Grad.NONE,), {})


class Affine:
    """A linear map with a weight and perhaps a bias: linear and conv."""

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Return the kind of W x + b."""
        product = inputs[0] if nonzero["weight"] else Value.ZERO
        bias = Value.STEADY if nonzero.get("bias", False) else Value.ZERO
        return strongest((product, bias))

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Send the gradient to weight, bias and input."""
        cancels = grad is Grad.CENTRED and inputs[0] is Value.STEADY
        params = {"weight": grad is not Grad.NONE and inputs[0] is not Value.ZERO and not cancels}
        if "bias" in nonzero:
            params["bias"] = grad is Grad.FULL
        if grad is Grad.NONE or not nonzero["weight"]:
            return Flow((Grad.NONE,), params)
        # A window that ends at a border treats positions unequally, so what was centred need not stay so.
        keeps_sums = use.attrs.get("kernel", 1) == 1 or use.attrs.get("padding_mode") == "circular"
        return Flow((grad if keeps_sums else Grad.FULL,), params)


@dataclass(frozen=True)
class Normalized:
    """A norm: the input, perhaps centred, divided by its spread, times weight, plus bias.

    Attributes:
        centres: Whether the mean is taken off first.
        over_channels: Whether the statistics run over all channels of one position.
    """

    centres: bool = True
    over_channels: bool = False

    def _spread(self, use: Use, value: Value) -> Value:
        """Return the kind of the normalised value, before weight and bias."""
        if not self.centres:
            return value
        if self.over_channels:
            return Value.ZERO if use.inputs[0] == 1 else value
        return Value.ZERO if value is Value.STEADY and self._by_channel(use) else value

    def _by_channel(self, use: Use) -> bool:
        return not self.over_channels and use.attrs.get("groups", use.inputs[0]) == use.inputs[0]

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Return the kind of the normalised value, or of the bias."""
        bias = Value.STEADY if nonzero.get("bias", False) else Value.ZERO
        return strongest((self._spread(use, inputs[0]), bias))

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Send the gradient to weight, bias and input."""
        spread = self._spread(use, inputs[0])
        cancels = grad is Grad.CENTRED and spread is Value.STEADY
        params = {"weight": grad is not Grad.NONE and spread is not Value.ZERO and not cancels}
        if "bias" in nonzero:
            params["bias"] = grad is Grad.FULL
        if grad is Grad.NONE or (self.over_channels and spread is Value.ZERO):
            return Flow((Grad.NONE,), params)
        if self.centres and self._by_channel(use):
            return Flow((Grad.CENTRED,), params)
        return Flow((_through(grad, inputs[0]),), params)


class Attended:
    """Softmax attention of queries, keys and values."""

    def value(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero) -> Value:
        """Return the kind of the values: a weighted mean of them is what comes out."""
        return inputs[2]

    def flow(self, use: Use, inputs: tuple[Value, ...], nonzero: Nonzero, grad: Grad) -> Flow:
        """Send the gradient to queries, keys and values; that of the keys sums to zero, as softmax ignores a shift."""
        query, key, value = inputs
        if grad is Grad.NONE:
            return Flow((Grad.NONE,) * 3, {})
        to_query = Grad.FULL if key is Value.VARIED and value is Value.VARIED else Grad.NONE
        to_key = Grad.CENTRED if query is not Value.ZERO and value is Value.VARIED else Grad.NONE
        return Flow((to_query, to_key, grad), {})
