"""The slots of a wrapped model as data, so that a saved model grows on where it would have grown, and needs no example."""

from typing import Any

from torch import nn

from esper.errors import ContractError
from esper.kasmina import MorphableModel, Place, Placement, Slot, placement_of
from esper.kasmina.morph import take_role


def describe_slots(model: nn.Module, placement: Placement) -> dict[str, Any]:
    """Return what ``wrap`` was asked for, and the places where their shapes are known."""
    return {
        "slots": _wanted_as_data(model, placement),
        "places": [place.to_dict() for place in placement.slots.values()] if placement.ready else None,
        "refusals": placement.refusals,
    }


def wanted_slots(data: dict[str, Any]) -> "str | list[str | type[nn.Module] | Slot]":
    """Return what ``wrap`` is to be asked for."""
    wanted = data["slots"]
    return wanted if isinstance(wanted, str) else [item if isinstance(item, str) else Slot(**item) for item in wanted]


def restore_slots(model: nn.Module, data: dict[str, Any]) -> None:
    """Give a model that was just wrapped the places that are known."""
    if data["places"] is None:
        return
    placement = placement_of(model)
    for place in data["places"]:
        try:
            placement.slots[place["name"]] = Place.from_dict(place, model)
        except (KeyError, ValueError, TypeError, AttributeError) as wrong:
            raise ContractError("the table of slots does not belong to this host", why=str(wrong)) from wrong
    placement.refusals.update(data["refusals"])
    placement.ready = True
    take_role(model, MorphableModel)


def _wanted_as_data(model: nn.Module, placement: Placement) -> str | list[Any]:
    """Return patterns and slots; module types become the names of the modules that have them."""
    wanted = placement.wanted
    if isinstance(wanted, str):
        return wanted
    items: list[Any] = []
    for item in wanted if isinstance(wanted, (list, tuple)) else [wanted]:
        if isinstance(item, type):
            items += [name for name, module in model.named_modules() if isinstance(module, item) and name]
        elif isinstance(item, Slot):
            items.append({"name": item.name, "layout": item.layout and item.layout.value, "causal": item.causal})
        else:
            items.append(item)
    return items
