"""A growing run as part of another library's checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina import GraftEntry, MorphableModel, Place, placement_of, restore_topology
from esper.kasmina.morph import take_role
from esper.services.tolaria.distributed.shares import with_own_share
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.optimizer import name_parameters
from esper.services.tolaria.resuming import check_fit, described
from esper.services.tolaria.snapshot import Snapshot, Subject, restore

VERSION = 1


def saved_run(growth: Growth, model: nn.Module) -> dict[str, Any]:
    """Return a run as plain containers and tensors: all that ``regrow`` and ``Growth.load_state_dict`` need."""
    return {"version": VERSION, "slots": slots_of(model), "growth": growth.state_dict()}


def check_version(saved: Mapping[str, Any]) -> None:
    """Refuse what another version wrote.

    Raises:
        ConfigError: If it was.
    """
    if saved.get("version") != VERSION:
        raise ConfigError(
            f"the checkpoint holds a growing run in version {saved.get('version')!r}",
            why=f"version {VERSION} is known",
            todo="resume it with the version of Esper that saved it",
            code="ESP-2170",
        )


def share_tensors(state: dict[str, Any], subject: Subject) -> None:
    """Put the training's own tensors in the place of their copies in a fresh ``Growth.state_dict()``.

    Whoever writes model, optimizer and this state into one file with ``torch.save`` then writes each of them once.
    """
    training = state["training"]
    own: dict[str, Tensor] = {
        **dict(subject.model.named_buffers()),
        **name_parameters(subject.model, subject.optimizer),
    }
    training["tensors"] = {name: own[name].detach() for name in training["tensors"]}
    for name, moments in training["moments"].items():
        present = subject.optimizer.state[own[name]]
        moments.update({key: value for key, value in present.items() if isinstance(value, Tensor)})


def slots_of(model: nn.Module) -> list[dict[str, Any]]:
    """Return the slots of a wrapped model as data, shapes included."""
    return [place.to_dict() for place in placement_of(model).slots.values()]


def regrow(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Give a wrapped model the slots and the grafts of a saved run; their values are loaded afterwards.

    Raises:
        ConfigError: If another version wrote it.
        NotFound: If the model has no such slot.
    """
    learn_slots(model, saved)
    restore_topology(model, tuple(GraftEntry(**entry) for entry in saved["growth"]["training"]["entries"]))


def learn_slots(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Let a model that was wrapped without an example learn the shapes of its slots from a saved run.

    Raises:
        ConfigError: If another version wrote it.
    """
    check_version(saved)
    placement = placement_of(model)
    if placement.ready:
        return
    for slot in saved["slots"]:
        placement.slots[slot["name"]] = Place.from_dict(slot, model)
    placement.ready = True
    take_role(model, MorphableModel)


def put_back(subject: Subject, saved: Mapping[str, Any]) -> None:
    """Make a training without a run what it was in a saved run: model, optimizer, schedule and generators.

    What else moves with the training is not touched.

    Raises:
        ConfigError: If the saved run is that of another model, optimizer or schedule.
    """
    state = with_own_share(subject.team, saved["growth"])
    check_fit(subject, {**state, "subject": {**state["subject"], "state": described(subject)["state"]}})
    snapshot = Snapshot.from_dict(state["training"])
    restore(replace(subject, others=()), replace(snapshot, others=()))
