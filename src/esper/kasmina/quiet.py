"""Leaving no trace: the global random generators, a model's modes and buffers, taken and put back."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """State of every global generator that a training loop may draw from.

    Attributes:
        python: Of ``random``.
        numpy: Of ``numpy.random``, or None where numpy was not imported.
        cpu: Of torch on the CPU.
        cuda: Of torch on each CUDA device; empty where CUDA is not in use.
    """

    python: tuple[Any, ...]
    numpy: tuple[Any, ...] | None
    cpu: Tensor
    cuda: tuple[Tensor, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, numbers, strings and tensors only."""
        version, words, gauss = self.python
        numpy = None if self.numpy is None else [self.numpy[0], [int(word) for word in self.numpy[1]], *self.numpy[2:]]
        return {"python": [version, list(words), gauss], "numpy": numpy, "cpu": self.cpu, "cuda": list(self.cuda)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RandomState":
        """Read what ``to_dict`` returned."""
        version, words, gauss = data["python"]
        numpy = None if data["numpy"] is None else tuple(data["numpy"])
        return cls((version, tuple(words), gauss), numpy, data["cpu"], tuple(data["cuda"]))


def capture_rng() -> RandomState:
    """Return the state of the global generators without changing them."""
    numpy = sys.modules.get("numpy")
    return RandomState(
        python=random.getstate(),
        numpy=None if numpy is None else numpy.random.get_state(),
        cpu=torch.get_rng_state(),
        cuda=tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else (),  # type: ignore[no-untyped-call]
    )


def restore_rng(state: RandomState) -> None:
    """Put the global generators back to ``state``."""
    random.setstate(state.python)
    numpy = sys.modules.get("numpy")
    if state.numpy is not None and numpy is not None:
        numpy.random.set_state(state.numpy)
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(list(state.cuda))


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Leave the global generators as they were found (law 8)."""
    state = capture_rng()
    try:
        yield
    finally:
        restore_rng(state)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Leave no trace of what runs inside: a model's modes and buffers and the generators are put back."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [_Held(module, name) for module in model.modules() for name in module._buffers]
    with preserved_rng():
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for buffer in buffers:
                buffer.put_back()


class _Held:
    """A buffer as it was found: the very tensor, as a forward pass may put another in its place, and its values."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self._module, self._name = module, name
        self._tensor = module._buffers[name]
        self._values = None if self._tensor is None else self._tensor.detach().clone()

    def put_back(self) -> None:
        """Restore it, in a way that autograd does not take for a change of what it saved."""
        self._module._buffers[self._name] = self._tensor
        if self._tensor is not None and self._values is not None:
            with torch.inference_mode(self._tensor.is_inference()):
                self._tensor.data.copy_(self._values)


@contextmanager
def quiet_eval(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode and without gradient, and leave no trace."""
    with quiet(model), torch.no_grad():
        model.eval()
        yield
