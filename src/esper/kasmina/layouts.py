"""Where a module puts its channels, told by the layers that run inside it."""

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from esper.ir import Layout

_FIRST = {
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.BatchNorm1d: 0,
    nn.BatchNorm2d: 2,
    nn.GroupNorm: 0,
    nn.InstanceNorm1d: 1,
    nn.InstanceNorm2d: 2,
    nn.MaxPool1d: 1,
    nn.MaxPool2d: 2,
    nn.AvgPool1d: 1,
    nn.AvgPool2d: 2,
    nn.AdaptiveAvgPool1d: 1,
    nn.AdaptiveAvgPool2d: 2,
}
"""Layers whose channels are axis 1, with their number of position axes; 0 where they take any."""
_LAST = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


@dataclass(frozen=True)
class Tell:
    """What one layer says of the layout around it.

    Attributes:
        first: Whether its channels are axis 1 rather than the last one.
        rank: Number of axes of its output.
        width: Number of its channels.
    """

    first: bool
    rank: int
    width: int


def tell_of(module: nn.Module, output: object) -> Tell | None:
    """Return what a layer tells, or None where it leaves channels where they are or its input has no batch axis."""
    value = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(value, Tensor) or value.is_nested or value.ndim < 2:
        return None
    if isinstance(module, _LAST):
        return Tell(first=False, rank=value.ndim, width=value.shape[-1])
    positions = next((axes for kind, axes in _FIRST.items() if isinstance(module, kind)), None)
    if positions is None or (positions and value.ndim != positions + 2):
        return None
    return Tell(first=True, rank=value.ndim, width=value.shape[1])


def layout_of(shape: tuple[int, ...], tells: tuple[Tell, ...], *, batch_first: bool = True) -> Layout | None:
    """Return the layout of an output of that shape, or None where the layers inside do not settle it.

    Only layers with as many axes count. One that kept its width to the end outweighs one that did not, so that a block which
    moves its channels to the back and to the front again is read right; where both orders fit, nothing is guessed. Sequences
    whose batch is not the first axis count as features, so that no graft mixes examples.
    """
    rank = len(shape)
    if rank == 2:
        return Layout.FEATURES if tells else None
    alike = [tell for tell in tells if tell.rank == rank]
    orders = {tell.first for tell in alike if _channels(shape, first=tell.first) == tell.width}
    if not orders and not any(_channels(shape, first=not tell.first) == tell.width for tell in alike):
        orders = {tell.first for tell in alike}
    if len(orders) != 1:
        return None
    if orders.pop():
        return {3: Layout.CHANNELS_1D, 4: Layout.CHANNELS_2D}.get(rank)
    return Layout.TOKENS if rank == 3 and batch_first else Layout.FEATURES


def fits(layout: Layout, shape: tuple[int, ...]) -> bool:
    """Tell whether a shape has the axes of a layout."""
    return len(shape) >= 2 if layout is Layout.FEATURES else len(shape) == layout.rank + 2


def channels_and_extent(layout: Layout, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the number of channels and the sizes of the position axes."""
    if layout.is_channels_first:
        return shape[1], shape[2:]
    return shape[-1], shape[1:-1] if layout is Layout.TOKENS else ()


def around(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of all axes but that of the channels."""
    return (shape[0], *shape[2:]) if layout.is_channels_first else shape[:-1]


def entering(layout: Layout, entered: tuple[int, ...] | None, left: tuple[int, ...]) -> int | None:
    """Return the channels of what entered a module, or None where it has other positions than what left it."""
    if entered is None or len(entered) != len(left) or around(layout, entered) != around(layout, left):
        return None
    return channels_and_extent(layout, entered)[0]


def positions(layout: Layout, shape: tuple[int, ...], *, batch_first: bool) -> int:
    """Return how many vectors of one example stand beside each other in an output whose layout has no axis for them."""
    if layout is not Layout.FEATURES or len(shape) < 3:
        return 1
    return prod(shape[1:-1]) if batch_first else shape[0] * prod(shape[2:-1])


def _channels(shape: tuple[int, ...], *, first: bool) -> int:
    return shape[1] if first else shape[-1]
