"""Optimizers by name, or made by the user."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from esper.errors import ConfigError
from esper.services.tolaria.trainer.choices import chosen

OptimizerFactory = Callable[[nn.Module], Optimizer]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def make_optimizer(
    given: str | OptimizerFactory, model: nn.Module, *, learning_rate: float, options: Mapping[str, Any]
) -> Optimizer:
    """Return an optimizer of a model.

    Raises:
        ConfigError: If there is none of that name, it does not take the options, or the user's function returns none.
    """
    if isinstance(given, str):
        try:
            return chosen("optimizer", given, OPTIMIZERS)(model.parameters(), lr=learning_rate, **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"optimizer {given!r} with {dict(options)}",
                why=str(error),
                todo="see the arguments of torch.optim",
                code="ESP-2703",
            ) from error
    made = given(model)
    if not isinstance(made, Optimizer):
        raise ConfigError(
            f"optimizer= returned a {type(made).__name__}",
            todo="return a torch.optim.Optimizer of the model's parameters",
            code="ESP-2703",
        )
    return made
