"""Checks what a user hands to ``esper.attach`` and builds the run from it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from esper.blueprints import catalog as catalog
from esper.contracts.ids import new_id
from esper.errors import ConfigError
from esper.ir import REGISTRY, BlueprintRegistry
from esper.kasmina import MorphableModel, placement_of
from esper.services.tolaria.averaged_model import FollowingAverage
from esper.services.tolaria.budget import Budget, count_params
from esper.services.tolaria.config import GovernorConfig, GrowthConfig, Late, OnCull, check_incubation
from esper.services.tolaria.control import Control, NoControl
from esper.services.tolaria.distributed.elsewhere import platform_elsewhere
from esper.services.tolaria.distributed.team import Team, told_text
from esper.services.tolaria.folder import RunFolder
from esper.services.tolaria.growth import STEERED, Growth
from esper.services.tolaria.held_out import Validate
from esper.services.tolaria.kernels import KernelShelf
from esper.services.tolaria.newborn_rate import NewbornRate
from esper.services.tolaria.observation import Observer
from esper.services.tolaria.optimizer import dead_parameters, refusal, remove_parameters
from esper.services.tolaria.platform import Parts, Platform
from esper.services.tolaria.probing import Probe
from esper.services.tolaria.regions import CompiledRegions
from esper.services.tolaria.schedules import Schedule, Schedules, regrouped, stray
from esper.services.tolaria.snapshot import Follower, Stateful, Subject

Choice = TypeVar("Choice", bound=StrEnum)


def check_host(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse what cannot grow, before anything is started.

    Raises:
        ConfigError: If the model is not wrapped or is attached already, or the optimizer steers another, cannot hold
            a newborn, or holds none of its parameters.
    """
    if not isinstance(model, MorphableModel):
        raise ConfigError("this model has no slots", todo="call esper.wrap(model) first", code="ESP-2101")
    if placement_of(model).grower is not None:
        raise ConfigError(
            "this model is attached already",
            why="two runs would operate on one model",
            todo="call growth.close() on the first one",
            code="ESP-2102",
        )
    if optimizer in STEERED:
        raise ConfigError(
            "this optimizer trains another model that is attached",
            why="a rollback of one would take the other's newborns and moments back",
            todo="give each model an optimizer of its own, or wrap one model that holds both",
            code="ESP-2102",
        )
    if (why := refusal(optimizer)) is not None:
        raise ConfigError(
            f"{type(optimizer).__name__} cannot hold a newborn",
            why=why,
            todo="attach an optimizer that can, such as AdamW or SGD, and give this one in state= where it trains a part",
            code="ESP-2128",
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ConfigError(
            "the optimizer holds no parameter of this model",
            todo="make the optimizer from model.parameters() of the very model that is attached",
            code="ESP-2103",
        )


def read_config(
    *,
    every: int,
    steps: int | None,
    lead: int,
    late: str,
    on_cull: str,
    control: object,
    probe: object,
    signal: str,
    incubate: int = 0,
    newborn_rate: NewbornRate | None = None,
    governor: bool | GovernorConfig = True,
) -> GrowthConfig:
    """Return the settings of a run.

    Raises:
        ConfigError: If boundaries never come, or a setting is not one of its choices.
    """
    check_length(every, steps)
    if not isinstance(lead, int) or lead < 1:
        raise ConfigError(
            f"lead={lead!r}", why="a decision joins at a later boundary", todo="give 1 or more", code="ESP-2108"
        )
    if control is not None and not isinstance(control, Control):
        raise ConfigError(
            f"control={control!r}",
            why="a twin trains on the same batches, and only a trainer has them",
            todo="leave it out; a gain is held against graft-free windows of the run",
            code="ESP-2109",
        )
    check_incubation(incubate)
    if probe is not None and not callable(probe):
        raise ConfigError(
            f"probe is a {type(probe).__name__}",
            todo="give a function from the model to a training loss",
            code="ESP-2111",
        )
    if newborn_rate is not None and not isinstance(newborn_rate, NewbornRate):
        raise ConfigError(
            f"newborn_rate is a {type(newborn_rate).__name__}", todo="give an esper.NewbornRate", code="ESP-2126"
        )
    return GrowthConfig(
        every=every,
        steps=steps,
        lead=lead,
        late=_chosen("late", late, Late),
        on_cull=_chosen("on_cull", on_cull, OnCull),
        incubate=incubate,
        newborn_rate=newborn_rate,
        signal=signal,
        governor=read_governor(governor),
    )


def read_governor(given: object) -> GovernorConfig | None:
    """Return how the governor judges, or None where there is to be none.

    Raises:
        ConfigError: If it is neither a switch nor a ``GovernorConfig``.
    """
    if isinstance(given, GovernorConfig):
        return given
    if not isinstance(given, bool):
        raise ConfigError(
            f"governor is a {type(given).__name__}",
            todo="give True, False or an esper.GovernorConfig",
            code="ESP-2196",
        )
    return GovernorConfig() if given else None


def _chosen(name: str, given: str, choices: type[Choice]) -> Choice:
    if given not in list(choices):
        known = " or ".join(f'"{choice}"' for choice in choices)
        raise ConfigError(f"{name}={given!r}", todo=f"use {known}", code="ESP-2112")
    return choices(given)


def check_length(every: int, steps: int | None) -> None:
    """Refuse boundaries that never come.

    Raises:
        ConfigError: If ``every`` is not positive or ``steps`` ends before the first boundary.
    """
    if not isinstance(every, int) or every < 1:
        raise ConfigError(
            f"every={every!r}",
            why="boundaries are a positive number of optimizer steps apart",
            todo="give 1 or more",
            code="ESP-2106",
        )
    if steps is not None and (not isinstance(steps, int) or steps < every):
        raise ConfigError(
            f"steps={steps!r} ends before the first boundary",
            why=f"every={every}",
            todo="make steps larger or every smaller",
            code="ESP-2107",
        )


def read_state(
    given: Sequence[Stateful], model: nn.Module, optimizer: Optimizer
) -> tuple[tuple[Stateful, ...], tuple[Follower, ...]]:
    """Return what moves with the training, and what of it follows the topology of the model.

    Raises:
        ConfigError: If something in it has no state to take and put back, or cannot follow.
    """
    if hasattr(given, "state_dict"):
        raise ConfigError("state= is one object", todo="give a tuple: state=(scaler,)", code="ESP-2113")
    others = tuple(_follower_of(item, model) if isinstance(item, AveragedModel) else item for item in given)
    for item in others:
        if not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise ConfigError(
                f"state= holds a {type(item).__name__}",
                why="it has no state_dict and load_state_dict, so that a rollback could not put it back",
                todo="give it both, or leave it out",
                code="ESP-2114",
            )
        if isinstance(item, LRScheduler) and item.optimizer is optimizer:
            raise ConfigError(
                f"state= holds a {type(item).__name__} of this optimizer",
                why="it would not follow the newborn's group",
                todo="give attach scheduler=(first, second)",
                code="ESP-2127",
            )
    return others, tuple(item for item in others if isinstance(item, FollowingAverage))


def _follower_of(average: AveragedModel, model: nn.Module) -> Stateful:
    return FollowingAverage(model, average)


def clear_dead_grafts(subject: Subject) -> None:
    """Drop what the optimizer still holds of grafts that an ``esper.unwrap`` took out."""
    dead = dead_parameters(subject.optimizer, subject.model)
    if dead:
        with regrouped(subject.schedule, subject.optimizer):
            remove_parameters(subject.optimizer, dead)


def check_parts(optimizer: Optimizer, validate: object, schedule: Schedule | None) -> None:
    """Refuse what the first boundary or the first graft would stumble over.

    Raises:
        ConfigError: If ``validate`` is no function, ``scheduler`` no schedule or one that cannot follow, or a schedule of the
            optimizer was not given.
    """
    if not callable(validate):
        raise ConfigError(
            f"validate is a {type(validate).__name__}",
            todo="give a function from the model to a 1-D tensor of losses, one per held-out example",
            code="ESP-2122",
        )
    for part in schedule.each if isinstance(schedule, Schedules) else [schedule]:
        if part is not None and not hasattr(part, "load_state_dict"):
            raise ConfigError(
                f"scheduler is a {type(part).__name__}", todo="give one of torch.optim.lr_scheduler", code="ESP-2115"
            )
    if schedule is not None and (why := stray(schedule, optimizer)) is not None:
        raise ConfigError(
            "the schedule would not follow a newborn's group",
            why=why,
            todo='name its lists that have one entry per group in a class attribute: per_group = ("floors",)',
            code="ESP-2125",
        )
    if schedule is None and any("initial_lr" in group for group in optimizer.param_groups):
        raise ConfigError(
            "a schedule steers this optimizer, and scheduler= was not given",
            why="it would not follow the newborn's group, and a rollback would not restore it",
            todo="give attach scheduler=",
            code="ESP-2116",
        )


def read_budget(given: str | Budget, model: nn.Module) -> Budget:
    """Read a budget against a host.

    Raises:
        ConfigError: If it is not one.
    """
    return Budget.of(given, host_params=count_params(model).host)


def new_run(root: str | os.PathLike[str], team: Team) -> RunFolder:
    """Make the folder of a new run; the process that leads names it, and alone writes there."""
    run_id = told_text(team, lambda: new_id("run"))
    with team.together("making the folder of the run"):
        return RunFolder(root, run_id, writes=team.leads)


def start_platform(team: Team, start: Callable[[], Platform]) -> Platform:
    """Start the services in the process that leads; the others have none."""
    platform: Platform | None = None
    try:
        with team.together("starting the services"):
            platform = start() if team.leads else platform_elsewhere()
    except BaseException:
        if platform is not None:
            platform.close()
        raise
    return platform


def start_growth(
    subject: Subject,
    platform: Platform,
    folder: RunFolder,
    *,
    validate: Validate,
    budget: Budget,
    config: GrowthConfig,
    probe: Probe | None = None,
    control: Control | None = None,
    whole: nn.Module | None = None,
    registry: BlueprintRegistry | None = None,
) -> Growth:
    """Build a run on a started platform; ``whole`` is what ``torch.compile(model)`` returned, where that is trained."""
    regions = CompiledRegions(subject.model, whole, platform.bridge.watched)
    subject = replace(subject, followers=(*subject.followers, regions))
    run_id = folder.run_id
    shelf = KernelShelf(
        platform.bridge, platform.library, platform.bus, registry or REGISTRY, run_id=run_id,
        measured=budget.latency is not None,
    )  # fmt: skip
    observer = Observer(subject, validate, config, run_id=run_id, regions=regions, probe=probe)
    return Growth(subject, Parts(platform, shelf, folder, control or NoControl()), observer, budget, config)
