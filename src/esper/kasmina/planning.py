"""The dry run: what could grow where, at what price, and what was left out and why."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from esper.blueprints import catalog as catalog
from esper.ir import REGISTRY, BlueprintRegistry
from esper.kasmina.discovery import Wanted, find_places, run_example
from esper.kasmina.placement import Place


@dataclass(frozen=True)
class PlannedGraft:
    """One blueprint at one slot, with its price.

    Attributes:
        slot: Name of the slot.
        blueprint: Name of the blueprint.
        params: Parameters that it would add.
        flops: Forward FLOPs per example that it would add.
    """

    slot: str
    blueprint: str
    params: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """What ``esper.plan`` found.

    Attributes:
        host_params: Parameters of the model.
        places: Slots in forward order.
        grafts: What could be grafted.
        refusals: What was left out, with the reason; blueprints as ``slot/blueprint``.
    """

    host_params: int
    places: tuple[Place, ...]
    grafts: tuple[PlannedGraft, ...]
    refusals: dict[str, str]

    def __str__(self) -> str:
        lines = [f"host {self.host_params:,} params, {len(self.places)} slots"]
        for place in self.places:
            extent = "x".join(map(str, place.extent))
            lines.append(f"{place.name}: {place.layout.value}, {place.channels} channels {extent}".rstrip())
            lines += [
                f"    {graft.blueprint:<18} +{graft.params:,} params  +{graft.flops:,} FLOPs/example"
                for graft in self.grafts
                if graft.slot == place.name
            ]
        return "\n".join([*lines, *self._left_out()])

    def _left_out(self) -> Iterator[str]:
        """Say what was left out: designs once for all slots that refuse them alike, then modules."""
        slots: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name, why in self.refusals.items():
            slot, _, blueprint = name.partition("/")
            if blueprint:
                slots[blueprint, why].append(slot)
        for (blueprint, why), names in slots.items():
            yield f"left out {blueprint} at {names[0] if len(names) == 1 else f'{len(names)} slots'}: {why}"
        yield from (f"left out {name}: {why}" for name, why in self.refusals.items() if "/" not in name)


def plan(model: nn.Module, example: object, slots: Wanted = "auto", registry: BlueprintRegistry = REGISTRY) -> Plan:
    """Say what could grow in a model, without changing it.

    Args:
        model: Any module, wrapped or not.
        example: One input batch.
        slots: As for ``wrap``.
        registry: Blueprints to choose from.

    Raises:
        ConfigError: If a pattern matches nothing or the model does not run on the example.
    """
    findings = find_places(model, slots, run_example(model, example))
    refusals = dict(findings.refusals)
    grafts = []
    for place in findings.places:
        for name in registry.names():
            refused = registry.refusal(name, place.site())
            if refused is not None:
                refusals[f"{place.name}/{name}"] = refused.why or refused.what
                continue
            price = place.price(registry.build(name, place.site()))
            grafts.append(PlannedGraft(place.name, name, price.params, price.flops))
    host_params = sum(parameter.numel() for parameter in model.parameters())
    return Plan(host_params, findings.places, tuple(grafts), refusals)
