"""Where a training runs."""

import torch
from torch import nn

from esper.errors import ConfigError


def device_for(given: str, model: nn.Module) -> torch.device:
    """Return the device to train on.

    Args:
        given: ``auto``, or a name such as ``cuda:1``. ``auto`` stays where the model was moved to, otherwise takes an
            accelerator where there is one.
        model: Not moved yet.

    Raises:
        ConfigError: If there is no such device here.
    """
    if given != "auto":
        return _tried(given)
    first = next(model.parameters(), None)
    if first is not None and first.device.type != "cpu":
        return first.device
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _tried(given: str) -> torch.device:
    try:
        device = torch.device(given)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"device {given!r} cannot be used",
            why=str(error).splitlines()[0],
            todo='use "auto", "cpu", or one that this machine has',
            code="ESP-2705",
        ) from error
    return device
