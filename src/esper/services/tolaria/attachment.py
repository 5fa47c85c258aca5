"""Checks what a user hands to ``esper.attach`` and builds the run from it."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from esper.blueprints import catalog as catalog
from esper.contracts.ids import new_id
from esper.errors import ConfigError
from esper.ir import REGISTRY, BlueprintRegistry
from esper.kasmina import MorphableModel, placement_of
from esper.ports import Advisor, Library, MessageBus
from esper.runtime.background import Bridge
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.config import GrowthConfig
from esper.services.tolaria.folder import RunFolder
from esper.services.tolaria.growth import Growth, Parts
from esper.services.tolaria.held_out import Validate
from esper.services.tolaria.kernels import KernelShelf
from esper.services.tolaria.observation import Observer
from esper.services.tolaria.snapshot import Subject


@dataclass(frozen=True)
class Platform:
    """The services that a run works with, already started.

    Attributes:
        bridge: Way to their loop.
        library: Blueprints and kernels.
        bus: Messages.
        advisor: The controller.
        close: Ends them.
    """

    bridge: Bridge
    library: Library
    bus: MessageBus
    advisor: Advisor
    close: Callable[[], object]


def check_host(model: nn.Module, optimizer: Optimizer) -> None:
    """Refuse what cannot grow, before anything is started.

    Raises:
        ConfigError: If the model is not wrapped, attached already, or none of its parameters is in the optimizer.
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
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ConfigError(
            "the optimizer holds no parameter of this model",
            todo="make the optimizer from model.parameters() of the very model that is attached",
            code="ESP-2103",
        )


def check_length(every: int, steps: int | None) -> None:
    """Refuse boundaries that never come.

    Raises:
        ConfigError: If ``every`` is not positive or ``steps`` ends before the first boundary.
    """
    if every < 1:
        raise ConfigError(
            f"every={every}", why="boundaries are a positive number of optimizer steps apart", code="ESP-2106"
        )
    if steps is not None and steps < every:
        raise ConfigError(f"steps={steps} ends before the first boundary", why=f"every={every}", code="ESP-2107")


def read_budget(given: str | Budget, model: nn.Module) -> Budget:
    """Read a budget against a host.

    Raises:
        ConfigError: If it is not one.
    """
    return Budget.of(given, host_params=sum(parameter.numel() for parameter in model.parameters()))


def new_run(root: str | os.PathLike[str]) -> RunFolder:
    """Make the folder of a new run."""
    return RunFolder(root, new_id("run"))


def start_growth(
    subject: Subject,
    platform: Platform,
    folder: RunFolder,
    *,
    validate: Validate,
    budget: Budget,
    config: GrowthConfig,
    registry: BlueprintRegistry | None = None,
) -> Growth:
    """Build a run on a started platform."""
    run_id = folder.run_id
    shelf = KernelShelf(platform.bridge, platform.library, platform.bus, registry or REGISTRY, run_id=run_id)
    parts = Parts(
        bridge=platform.bridge, library=platform.library, bus=platform.bus, advisor=platform.advisor,
        shelf=shelf, folder=folder, close=platform.close,
    )  # fmt: skip
    observer = Observer(subject.model, subject.optimizer, validate, config, run_id=run_id)
    return Growth(subject, parts, observer, budget, config)
