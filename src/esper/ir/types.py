"""Vocabulary of blueprints: layouts, sites, attributes and nodes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from esper.errors import ContractError

Attr: TypeAlias = bool | int | float | str
"""What an attribute of a node may hold."""

INPUT = "input"
"""Reserved id of the value that enters a blueprint."""


class Layout(StrEnum):
    """Where the channels of a tensor lie."""

    FEATURES = "features"
    """(..., C): positions, if any, are independent examples."""
    TOKENS = "tokens"
    """(N, L, C): a sequence, features last."""
    CHANNELS_1D = "channels_1d"
    """(N, C, L)."""
    CHANNELS_2D = "channels_2d"
    """(N, C, H, W)."""

    @property
    def rank(self) -> int:
        """Number of position axes: 0 for features, 1 for sequences, 2 for images."""
        return _RANKS[self]

    @property
    def is_channels_first(self) -> bool:
        """Whether the channels are axis 1 rather than the last axis."""
        return self in (Layout.CHANNELS_1D, Layout.CHANNELS_2D)


class Reads(StrEnum):
    """What a blueprint's F is given at a slot."""

    OUTPUT = "output"
    """What leaves the slot's module: y = h + alpha * F(h)."""
    INPUT = "input"
    """What enters it, beside it: y = M(x) + alpha * F(x), as if the module had more hidden units."""


_RANKS = {Layout.FEATURES: 0, Layout.TOKENS: 1, Layout.CHANNELS_1D: 1, Layout.CHANNELS_2D: 2}


@dataclass(frozen=True)
class Site:
    """A place in a host for which a blueprint is drawn.

    Attributes:
        layout: Where the channels lie.
        channels: Number of channels that leave the module there, to which a graft adds.
        extent: Sizes of the position axes, () for features or where they are not known; used for costs only, so equal
            designs for different extents have one digest.
        causal: Whether a token may see earlier tokens only. Heeded at token sites.
        entering: Number of channels that enter the module there; None where that is not known, or where what enters has
            other positions than what leaves, so that nothing can be read beside it.
        activation: Nonlinearity of the host there, as the operation of that name; None where that is not known.
    """

    layout: Layout
    channels: int
    extent: tuple[int, ...] = ()
    causal: bool = True
    entering: int | None = None
    activation: str | None = None

    def __post_init__(self) -> None:
        if min(self.channels, self.entering or 1) < 1 or self.entering == 0:
            why = f"{self.entering} enter and {self.channels} leave"
            raise ContractError("site has no channels", why=why, todo="Give at least 1.")
        if self.extent and (len(self.extent) != self.layout.rank or min(self.extent) < 1):
            raise ContractError(
                f"extent {self.extent} does not fit the layout {self.layout}",
                why=f"it has {self.layout.rank} position axes, each of at least 1",
                todo="Give one size for each, or () where they are not known.",
            )

    def width_for(self, reads: Reads) -> int | None:
        """Return the channels that a blueprint is given here, or None where they are not known."""
        return self.channels if reads is Reads.OUTPUT else self.entering


class Attrs(Mapping[str, Attr]):
    """Attributes of a node: immutable, ordered by name, hashable."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Attr] | None = None) -> None:
        self._items: dict[str, Attr] = dict(sorted((items or {}).items()))

    def __getitem__(self, name: str) -> Attr:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(tuple(self._items.items()))

    def __repr__(self) -> str:
        return f"Attrs({self._items!r})"

    def integer(self, name: str) -> int:
        """Return an attribute that is a whole number."""
        value = self._items[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"attribute {name} is {value!r}, not an integer")
        return value

    def number(self, name: str) -> float:
        """Return an attribute that is a float."""
        value = self._items[name]
        if not isinstance(value, float):
            raise TypeError(f"attribute {name} is {value!r}, not a float")
        return value

    def flag(self, name: str) -> bool:
        """Return an attribute that is true or false."""
        value = self._items[name]
        if not isinstance(value, bool):
            raise TypeError(f"attribute {name} is {value!r}, not a bool")
        return value

    def choice(self, name: str) -> str:
        """Return an attribute that is a word."""
        value = self._items[name]
        if not isinstance(value, str):
            raise TypeError(f"attribute {name} is {value!r}, not a string")
        return value


@dataclass(frozen=True)
class Node:
    """One operation of a blueprint.

    Attributes:
        id: Its name; its parameters are called ``<id>.weight`` and so on.
        op: Name of the operation in the op table.
        inputs: Ids of earlier nodes, or ``"input"``.
        attrs: Attributes by name; those left out take their defaults when a blueprint is made of the node.
    """

    id: str
    op: str
    inputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = Attrs()

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if not isinstance(self.attrs, Attrs):
            object.__setattr__(self, "attrs", Attrs(self.attrs))
