"""What an exported model is run on: the example, and what is made of it."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from esper.errors import ConfigError, EsperError
from esper.kasmina.discovery import arguments
from esper.kasmina.quiet import quiet_eval

SHUFFLES = 3
"""Random inputs on which an export is checked, apart from the example."""
LARGE = 100.0
"""Factor by which the large input is larger than the example."""


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call.

    Attributes:
        args: Positional ones.
        kwargs: The others.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example: object) -> "Inputs":
        """Read an example as ``esper.wrap`` takes it.

        Raises:
            ConfigError: If it has no tensor with a batch.
        """
        args, kwargs = arguments(example)
        inputs = cls(args, kwargs)
        if not any(tensor.ndim and len(tensor) for tensor in inputs.tensors()):
            raise ConfigError(
                "the example has no batch",
                why="the first axis of a tensor is the batch, and no tensor has examples",
                todo="give one input batch as the training loop does",
                code="ESP-2623",
            )
        return inputs

    def tensors(self) -> list[Tensor]:
        """Return every tensor, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int:
        """Size of the batch: the first axis of the first tensor that has one."""
        return next(len(tensor) for tensor in self.tensors() if tensor.ndim)

    def has_batch(self, tensor: object) -> bool:
        """Tell whether a tensor's first axis is the batch."""
        return isinstance(tensor, Tensor) and tensor.ndim > 0 and len(tensor) == self.batch

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return the same with every tensor changed."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, self.kwargs))
        return Inputs(args, kwargs)

    def resized(self, batch: int) -> "Inputs":
        """Return a batch of another size, of the same examples in turn."""
        rows = torch.arange(batch) % self.batch
        return self.mapped(lambda tensor: tensor[rows.to(tensor.device)] if self.has_batch(tensor) else tensor)

    def any_batch(self, model: nn.Module) -> dict[str, Any]:
        """Return the shapes that ``torch.export`` may take for granted: all but the size of the batch."""
        bound = inspect.signature(model.forward).bind(*self.args, **self.kwargs).arguments
        free = {0: Dim.DYNAMIC}
        shapes: dict[str, Any] = pytree.tree_map(lambda leaf: free if self.has_batch(leaf) else None, dict(bound))
        return shapes


def variants(inputs: Inputs, *, any_batch: bool) -> Iterator[tuple[str, Inputs]]:
    """Yield what an export is checked on: the example, random and extreme numbers, and other batch sizes."""
    yield "example", inputs
    generator = torch.Generator().manual_seed(0)
    for index in range(SHUFFLES):
        yield f"random {index + 1}", inputs.mapped(lambda tensor: _shuffled(tensor, generator))
    yield (
        "zeros",
        inputs.mapped(lambda t: torch.zeros_like(t) if t.is_floating_point() else t.flatten()[0].expand_as(t).clone()),
    )
    yield "large", inputs.mapped(lambda t: t * LARGE if t.is_floating_point() else t)
    if any_batch:
        for batch in sorted({1, inputs.batch + 1, 2 * inputs.batch + 1}):
            yield f"batch of {batch}", inputs.resized(batch)


def run(model: nn.Module, inputs: Inputs, what: str) -> object:
    """Run a model in eval mode, leaving no trace.

    Raises:
        ConfigError: If it does not take the inputs.
    """
    try:
        with quiet_eval(model):
            return model(*inputs.args, **inputs.kwargs)
    except EsperError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the model does not run on the {what}",
            why=f"{type(error).__name__}: {error}",
            todo="give one input batch as the training loop does",
            code="ESP-2602",
        ) from error


def _shuffled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal numbers of the same mean and spread; of whole numbers and flags, the same ones in another order."""
    if tensor.is_floating_point():
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        spread = tensor.std() if tensor.numel() > 1 else torch.ones_like(tensor).squeeze()
        return tensor.mean() + spread * noise
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape)
