"""Whether a training's state can be gone on from: no parameter, buffer or moment that is not finite."""

from collections.abc import Iterator

import torch
from torch import Tensor

from esper.kasmina.shares import local
from esper.services.tolaria.distributed.partition import holder_of
from esper.services.tolaria.optimizer import name_parameters
from esper.services.tolaria.snapshot import Subject


class Soundness:
    """Looks for values that are not finite. One pass over what this rank holds, and one wait for each device.

    Args:
        subject: The training. Buffers that are not finite now, as a mask of attention is, may stay so.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._excused = {
            name for name, buffer in subject.model.named_buffers() if _floats(buffer) and not _is_finite(buffer)
        }

    def fault(self) -> str | None:
        """Return the name of something that is not finite, or None."""
        named = list(self._named())
        verdicts = _read([torch.isfinite(local(tensor.detach())).all() for _, tensor in named])
        return next((name for (name, _), finite in zip(named, verdicts, strict=True) if not finite), None)

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        model, optimizer = self._subject.model, self._subject.optimizer
        parameters, held = name_parameters(model, optimizer), holder_of(optimizer).state
        for name, parameter in parameters.items():
            if _floats(parameter):
                yield name, parameter
        for name, buffer in model.named_buffers():
            if _floats(buffer) and name not in self._excused:
                yield name, buffer
        for name, parameter in parameters.items():
            moments = held.get(parameter, {})
            for key, moment in moments.items() if isinstance(moments, dict) else ():
                if isinstance(moment, Tensor) and _floats(moment):
                    yield f"{key} of {name}", moment


def _floats(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _read(flags: list[Tensor]) -> list[bool]:
    """Return flags as they are on their devices, each device waited for once."""
    found: dict[int, bool] = {}
    for device in {flag.device for flag in flags}:
        there = [index for index, flag in enumerate(flags) if flag.device == device]
        values = torch.stack([flags[index] for index in there]).tolist()
        found.update(zip(there, values, strict=True))
    return [found[index] for index in range(len(flags))]
