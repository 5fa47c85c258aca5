"""Loggers by name; the libraries behind them are imported when one is asked for."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from esper.errors import ConfigError
from esper.services.tolaria.trainer.choices import chosen
from esper.services.tolaria.trainer.loggers.base import Logger

LOGGERS = {
    "tensorboard": ("esper.services.tolaria.trainer.loggers.tensorboard", "TensorBoardLogger"),
    "wandb": ("esper.services.tolaria.trainer.loggers.wandb", "WandbLogger"),
    "mlflow": ("esper.services.tolaria.trainer.loggers.mlflow", "MLflowLogger"),
}
"""Modules and classes by name."""


def check_loggers(given: Sequence[str | Logger]) -> None:
    """Refuse what is neither a known name nor a logger, before anything is started.

    Raises:
        ConfigError: If one is not.
    """
    for logger in given:
        if isinstance(logger, str):
            chosen("logger", logger, LOGGERS)
        elif not callable(getattr(logger, "log", None)):
            raise ConfigError(
                f"loggers= holds a {type(logger).__name__}",
                why="it has no log(metrics, step)",
                todo=f"give it one, or a name: {', '.join(LOGGERS)}",
                code="ESP-2708",
            )


def open_loggers(given: Sequence[str | Logger], *, folder: Path, run_id: str) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        given: Names and objects.
        folder: Of the run.
        run_id: Names it.

    Raises:
        ConfigError: If the library behind a name is not installed.
    """
    return [_opened(logger, folder, run_id) if isinstance(logger, str) else logger for logger in given]


def _opened(name: str, folder: Path, run_id: str) -> Logger:
    module, kind = chosen("logger", name, LOGGERS)
    try:
        made: Callable[..., Any] = getattr(importlib.import_module(module), kind)
    except ImportError as error:
        raise ConfigError(
            f"logger {name!r} cannot be used",
            why=str(error),
            todo='pip install "esper-morphogenesis[loggers]"',
            code="ESP-2709",
        ) from error
    logger: Logger = made(folder / name, run_id=run_id)
    return logger
