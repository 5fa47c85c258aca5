"""What a wrapped model says of itself."""

from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from esper.kasmina.placement import Place, placement_of


@dataclass(frozen=True)
class Description:
    """Describes a wrapped model's slots and grafts.

    Attributes:
        model: The model.
    """

    model: nn.Module

    def summary(self) -> str:
        """Return one line per slot: layout, channels, extent and what lives there."""
        placement = placement_of(self.model)
        if not placement.ready:
            return "slots are known after the first forward pass (or give esper.wrap an example=)"
        lines = [self._line(place) for place in placement.slots.values()]
        lines += [f"- {name}: left out, {reason}" for name, reason in placement.refusals.items()]
        return "\n".join(lines) or "no slots"

    def graph(self) -> list[dict[str, object]]:
        """Return the slots in forward order as data."""
        return [
            {
                "slot": place.name,
                "stage": place.stage,
                "order": place.order,
                "layout": place.layout.value,
                "channels": place.channels,
                "extent": list(place.extent),
                "seeds": self._states(place.name),
            }
            for place in placement_of(self.model).slots.values()
        ]

    def to_mermaid(self) -> str:
        """Return a Mermaid flow chart of the slots."""
        places = list(placement_of(self.model).slots.values())
        nodes = [f'  s{place.order}["{place.name} {place.layout.value} {place.channels}"]' for place in places]
        edges = [f"  s{left.order} --> s{right.order}" for left, right in pairwise(places)]
        return "\n".join(["flowchart LR", *nodes, *edges])

    def _line(self, place: Place) -> str:
        extent = "x".join(str(size) for size in place.extent)
        states = ", ".join(self._states(place.name)) or "dormant"
        shape = f"{place.channels} channels" + (f" of {extent}" if extent else "")
        return f"{place.name}: {place.layout.value}, {shape}, stage {place.stage}: {states}"

    def _states(self, name: str) -> list[str]:
        seeds = placement_of(self.model).seeds
        return [seed.state.value for (slot, _), seed in sorted(seeds.items()) if slot == name]
