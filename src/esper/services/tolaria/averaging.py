"""Averaged weights: the mean over the steps since the last boundary, which cuts the noise of an evaluation 2–4 times."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor, nn

from esper.kasmina.shares import local


class AverageState(TypedDict):
    """What a mean over weights holds."""

    count: int
    sums: dict[str, Tensor]


class AveragedWeights:
    """A running mean of a model's parameters and floating buffers.

    References:
        Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def reset(self) -> None:
        """Forget what was seen; the next mean begins here."""
        self._sums, self._count = {}, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        present = _floating(self._model)
        if not self._count:
            self._sums = {name: _summable(tensor) for name, tensor in present.items()}
        else:
            self._sums = {name: total for name, total in self._sums.items() if _alike(present.get(name), total)}
            torch._foreach_add_(list(self._sums.values()), [present[name] for name in self._sums])
        self._count += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the mean inside the block, and exactly its own weights again after it."""
        if self._count < 2:
            yield
            return
        present = _floating(self._model)
        own = {name: tensor.detach().clone() for name, tensor in present.items()}
        try:
            means = {n: total / self._count for n, total in self._sums.items() if _alike(present.get(n), total)}
            _copy_into(present, means)
            yield
        finally:
            _copy_into(present, own)

    def state_dict(self, *, copy: bool = True) -> AverageState:
        """Return the mean so far: a copy, or the very tensors that the next update changes."""
        sums = {name: total.clone() if copy else total for name, total in self._sums.items()}
        return {"count": self._count, "sums": sums}

    def load_state_dict(self, state: AverageState) -> None:
        """Go on from a mean that ``state_dict`` returned; sums lie where the tensors do, as those of a file lie on the CPU."""
        present = _floating(self._model)
        self._count = state["count"]
        self._sums = {n: total.to(present.get(n, total).device, copy=True) for n, total in state["sums"].items()}


def _floating(model: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {n: local(parameter.data) for n, parameter in model.named_parameters()}
    named.update((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())
    return named


def _alike(present: Tensor | None, total: Tensor) -> bool:
    """Tell whether a tensor still has the shape that was averaged; a cache that grows has not, and has no mean."""
    return present is not None and present.shape == total.shape


def _summable(tensor: Tensor) -> Tensor:
    """Return a copy that can be summed without losing digits."""
    narrow = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.detach().to(torch.float32 if narrow else tensor.dtype, copy=True)


@torch.no_grad()
def _copy_into(present: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        present[name].copy_(value)
    torch.clear_autocast_cache()  # a caller within autocast would go on with casts of what was there before
