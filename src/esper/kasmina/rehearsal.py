"""Running a compiled region before training does, so that what compiling costs, or breaks, is met at the join."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from esper.kasmina.incubation import paused
from esper.kasmina.quiet import quiet

KEPT_WHOLE = 4096
"""Floating tensors up to this many numbers are kept as they are; of larger ones the shape is, as they are activations."""


@dataclass(frozen=True)
class Likeness:
    """What compiled code knows of a large floating tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    def tensor(self) -> Tensor:
        """Return such a tensor; its values are drawn from a generator of its own."""
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(self.shape, generator=generator).to(self.device, self.dtype)
        like = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device).copy_(values)
        return _with_gradient(like, self.requires_grad)


@dataclass(frozen=True)
class Whole:
    """A tensor that is kept as it was: token ids, masks, and what is small."""

    value: Tensor
    requires_grad: bool

    def tensor(self) -> Tensor:
        """Return such a tensor."""
        return _with_gradient(self.value.clone(), self.requires_grad)


@dataclass(frozen=True)
class Call:
    """How training calls a region.

    Attributes:
        args: Positional arguments, tensors as likenesses.
        kwargs: Named arguments.
        autocast: Device type, type and switch of the automatic casts around it.
        modes: Of every module inside, by name: some may be held in evaluation mode while the rest trains.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[tuple[str, torch.dtype, bool], ...]
    modes: dict[str, bool]

    def repeat(self, region: nn.Module, run: Callable[..., Any]) -> None:
        """Run a region forward and backward, leaving no trace: no gradient, no buffer, no random number.

        Args:
            region: The module.
            run: What training calls: the module itself, or the compiled wrapper around it.
        """
        with quiet(region), paused(region), torch.enable_grad(), self._casts():
            for name, module in region.named_modules():
                module.training = self.modes.get(name, module.training)
            args, kwargs = tree_map_only((Likeness, Whole), lambda kept: kept.tensor(), (self.args, self.kwargs))
            outputs = [t for t in tree_leaves(run(*args, **kwargs)) if _differentiable(t)]
            given = [t for t in tree_leaves((args, kwargs)) if _differentiable(t)]
            inputs = [*given, *(p for p in region.parameters() if p.requires_grad)]
            if outputs and inputs:
                torch.autograd.grad(outputs, inputs, [torch.ones_like(t) for t in outputs], allow_unused=True)

    def _casts(self) -> AbstractContextManager[object]:
        stack = ExitStack()
        for device, dtype, enabled in self.autocast:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        return stack


def call_of(region: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Return how a region is being called now."""
    kept_args, kept_kwargs = tree_map_only(Tensor, _kept, (args, kwargs))
    devices = {"cpu", *(t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))}
    casts = tuple(
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)) for device in sorted(devices)
    )
    return Call(kept_args, kept_kwargs, casts, {name: m.training for name, m in region.named_modules()})


def _kept(tensor: Tensor) -> Likeness | Whole:
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_nested
    if plain and tensor.is_floating_point() and tensor.numel() > KEPT_WHOLE and not _overlaps(tensor):
        shape, stride = tuple(tensor.shape), tuple(tensor.stride())
        return Likeness(shape, stride, tensor.dtype, tensor.device, tensor.requires_grad)
    return Whole(tensor.detach().clone(), tensor.requires_grad)


def _overlaps(tensor: Tensor) -> bool:
    """Tell whether several elements lie at one place, as in an expanded tensor, which cannot be written to."""
    return any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _with_gradient(tensor: Tensor, requires_grad: bool) -> Tensor:
    # A leaf's clone: what a region is given in training has a history.
    return tensor.requires_grad_().clone() if requires_grad else tensor


def _differentiable(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad
