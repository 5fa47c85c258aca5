"""Whether a saved run fits the training that is to go on from it; checked before anything is changed."""

from typing import Any

from esper.errors import ConfigError
from esper.kasmina.placement import CHILD
from esper.services.tolaria.distributed.partition import kind_of
from esper.services.tolaria.snapshot import Subject

STATE_VERSION = 1


def described(subject: Subject) -> dict[str, Any]:
    """Return what must be equal in the run that goes on: kinds of parts, and the shapes of the host's parameters."""
    return {
        "optimizer": kind_of(subject.optimizer),
        "scheduler": None if subject.schedule is None else type(subject.schedule).__name__,
        "state": [type(other).__name__ for other in subject.others],
        "host": {
            name: list(parameter.shape)
            for name, parameter in subject.model.named_parameters()
            if f"{CHILD}." not in name
        },
    }


def check_fit(subject: Subject, state: dict[str, Any]) -> None:
    """Refuse a saved run of another training.

    Raises:
        ConfigError: If it is no saved run, of a version that is not known, or of other parts; it says which.
    """
    if state.get("version") != STATE_VERSION:
        raise ConfigError(
            f"growth state of version {state.get('version')!r}",
            why=f"version {STATE_VERSION} is known",
            todo="give what growth.state_dict() returned, saved by this version of Esper",
            code="ESP-2170",
        )
    now, saved = described(subject), state["subject"]
    for part in ("optimizer", "scheduler", "state"):
        if now[part] != saved[part]:
            raise ConfigError(
                "the saved run does not fit this training",
                why=f"its {part} was {saved[part]}, this one is {now[part]}",
                todo="attach with the same parts as the run that was saved",
                code="ESP-2171",
            )
    odd = [
        name for name in now["host"].keys() | saved["host"].keys() if now["host"].get(name) != saved["host"].get(name)
    ]
    if odd:
        name = min(odd)
        raise ConfigError(
            "the saved run does not fit this model",
            why=f"{name} had shape {saved['host'].get(name)}, here it is {now['host'].get(name)}",
            todo="make the model as the run that was saved had it",
            code="ESP-2171",
        )


def not_taken(error: Exception) -> ConfigError:
    """Return the error of a saved run that cannot be gone on from."""
    return ConfigError(
        "the saved run cannot be gone on from, and the training is as it was",
        why=f"{type(error).__name__}: {error}",
        todo="load another checkpoint, and attach with the same parts as the run that was saved",
        code="ESP-2172",
    )
