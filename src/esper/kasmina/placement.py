"""Slots of a wrapped model: where something may grow, and what lives there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from torch import nn

from esper.errors import ConfigError, NotFound
from esper.ir import BlueprintIR, Cost, Layout, Site, cost
from esper.kasmina.lifecycle import Seed
from esper.ports import Library

KEY = "_esper_placement"
"""Where a wrapped model keeps its placement: a plain attribute, no module, buffer or key."""
CHILD = "esper_grafts"
"""Name of the one child that a grafted module has more than its host."""


@dataclass(frozen=True)
class Slot:
    """A place chosen by hand.

    Attributes:
        name: Qualified name of the module after which something may grow.
        layout: Where its output has its channels; needed where the layer type does not tell.
        causal: Whether tokens may look back only.

    Raises:
        ConfigError: If there is no such layout.
    """

    name: str
    layout: Layout | None = None
    causal: bool = True

    def __post_init__(self) -> None:
        known = [layout.value for layout in Layout]
        if self.layout is not None and self.layout not in known:
            raise ConfigError(
                f"slot {self.name!r} has the layout {self.layout!r}",
                why=f"layouts are {', '.join(known)}",
                code="ESP-2215",
            )
        object.__setattr__(self, "layout", None if self.layout is None else Layout(self.layout))


@dataclass(frozen=True)
class Place:
    """A slot whose shape is known.

    Attributes:
        name: Qualified name of the module.
        module: The module; a graft computes on its output, or beside it on its input, and adds to its output.
        layout: Where the channels lie.
        channels: How many there are.
        extent: Sizes of the position axes in the example.
        order: Position in the forward pass.
        stage: Index of the run of consecutive slots with equal layout, channels and extent.
        causal: Whether tokens may look back only.
        uses: How often a graft computes on that extent in one pass of one example: in every call of the module, and for
            features at every position.
        entering: How many channels enter the module; None where that is not one tensor with the positions of what leaves.
        activation: The one nonlinearity in the module, or else in the model, as an operation; None where it has not one.
    """

    name: str
    module: nn.Module
    layout: Layout
    channels: int
    extent: tuple[int, ...]
    order: int
    stage: int
    causal: bool
    uses: int = 1
    entering: int | None = None
    activation: str | None = None

    def site(self) -> Site:
        """Return what a blueprint is drawn for."""
        return Site(self.layout, self.channels, self.extent, self.causal, self.entering, self.activation)

    def price(self, ir: BlueprintIR) -> Cost:
        """Return what a blueprint would cost here: parameters, and forward FLOPs per example."""
        once = cost(ir, self.extent)
        return replace(once, flops=once.flops * self.uses)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without the module."""
        return {
            "name": self.name, "layout": self.layout.value, "channels": self.channels, "extent": list(self.extent),
            "order": self.order, "stage": self.stage, "causal": self.causal, "uses": self.uses,
            "entering": self.entering, "activation": self.activation,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: nn.Module) -> Self:
        """Read what ``to_dict`` returned, for a model of the same host."""
        found = {**data, "layout": Layout(data["layout"]), "extent": tuple(data["extent"])}
        return cls(module=model.get_submodule(data["name"]), **found)


class Grower(Protocol):
    """A run that is attached to the model; ``load_kernel`` goes through it, so that the optimizer learns of the newborn."""

    async def graft_kernel(self, layer_name: str, seed_idx: int, kernel_id: str) -> None:
        """Graft a kernel of the library."""
        ...


@dataclass
class Placement:
    """Everything that Esper knows of a wrapped model.

    Attributes:
        wanted: What ``wrap`` was asked for.
        slots: Places by name, in forward order; empty until shapes are known.
        seeds: What lives there, by slot and index.
        refusals: Names that were considered and left out, with the reason.
        ready: Whether shapes are known.
        library: Where ``load_kernel`` reads.
        grower: The run that is attached, or None.
        distribute: Spreads a kernel over the ranks before it joins, where the host is spread so; or None.
    """

    wanted: "str | Slot | type[nn.Module] | Sequence[str | type[nn.Module] | Slot]"
    slots: dict[str, Place] = field(default_factory=dict)
    seeds: dict[tuple[str, int], Seed] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)
    ready: bool = False
    library: Library | None = None
    grower: Grower | None = None
    distribute: "Callable[[nn.Module, Place], None] | None" = None

    def place(self, name: str) -> Place:
        """Return a slot.

        Raises:
            NotFound: If there is none of that name.
        """
        if name not in self.slots:
            known = ", ".join(self.slots) or "none: run the model once, or give wrap an example="
            raise NotFound(
                f"slot {name!r}", why=f"slots are {known}", todo=self.refusals.get(name, ""), code="ESP-5001"
            )
        return self.slots[name]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles have neither run, library nor ranks of the original."""
        return {**self.__dict__, "library": None, "grower": None, "distribute": None}


def placement_of(model: nn.Module) -> Placement:
    """Return the placement of a wrapped model.

    Raises:
        ConfigError: If it is not wrapped.
    """
    placement = vars(model).get(KEY)
    if not isinstance(placement, Placement):
        raise ConfigError("this model has no slots", todo="call esper.wrap(model) first", code="ESP-2101")
    return placement
