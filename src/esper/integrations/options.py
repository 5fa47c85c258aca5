"""What a callback takes for ``esper.attach`` and hands on when training begins."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from esper.assembly import attach
from esper.errors import ConfigError
from esper.kasmina import MorphableModel, placement_of
from esper.kasmina.discovery import Wanted
from esper.kasmina.wrapping import wrap

OWN = ("model", "optimizer", "scheduler", "validate", "every", "steps", "budget", "state", "ddp")
"""Arguments of ``attach`` that a callback finds itself or names in its own signature."""


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return further arguments of ``esper.attach``.

    Raises:
        ConfigError: If ``attach`` has none of that name.
    """
    known = [name for name in inspect.signature(attach).parameters if name not in OWN]
    for name in options:
        if name not in known:
            raise ConfigError(
                f"the callback has no argument {name!r}",
                why=f"besides its own it takes those of esper.attach: {', '.join(known)}",
                code="ESP-2461",
            )
    return dict(options)


def wrapped(model: nn.Module, slots: Wanted, example: object) -> nn.Module:
    """Give a model its slots where it has none yet."""
    return model if isinstance(model, MorphableModel) else wrap(model, slots, example)


def check_called(model: nn.Module) -> None:
    """Refuse to train on where nothing can ever grow, as the model that has the slots is not the one that is called.

    Raises:
        ConfigError: If the shapes of its slots are still not known after a step.
    """
    if not placement_of(model).ready:
        raise ConfigError(
            "the model that has the slots was not called in the first step",
            why="the shapes of its slots are learned from a call",
            todo="give the callback example= one input batch, or the part of the model that training calls",
            code="ESP-2464",
        )


def part_of(model: nn.Module, name: str | None) -> nn.Module:
    """Return the part of a model that grows; the model itself where no name is given.

    Raises:
        ConfigError: If it has no part of that name.
    """
    if name is None:
        return model
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(child for child, _ in model.named_children())
        raise ConfigError(
            f"the {type(model).__name__} has no part {name!r}", why=f"it has {names}", code="ESP-2463"
        ) from error
