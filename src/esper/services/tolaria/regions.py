"""Compiled regions of a training: compiled again inside the transaction that changes them, and run eagerly when measured."""

import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import torch
from torch import nn

from esper.kasmina import detach, join
from esper.kasmina.compiling import compiled_regions, eager, make_room, structure_of
from esper.kasmina.rehearsal import Call, call_of

Watched = Callable[[], AbstractContextManager[None]]


class CompiledRegions:
    """Follows the topology of a model whose parts, or whose whole, ``torch.compile`` compiled.

    After a join it runs the region that grew once, forward and backward, as training called it last. What compiling takes is
    then spent, and counted as a wait, at the boundary; what cannot be compiled makes the graft fail, and the host is restored.

    Args:
        model: Wrapped model.
        whole: What ``torch.compile(model)`` returned, where the caller trains with that.
        watched: Counts what blocks training.

    Attributes:
        rehearsals: How often a region was run ahead of training.
    """

    def __init__(self, model: nn.Module, whole: nn.Module | None, watched: Watched) -> None:
        self.rehearsals = 0
        self._model, self._whole, self._watched = model, whole, watched
        self._calls: dict[str, Call] = {}
        self._hooks: list[Any] = []
        self._known = {name: {structure_of(region)} for name, region in self._regions().items()}
        make_room(model)

    def arm(self) -> None:
        """Note how each region is called, on a step that runs eagerly."""
        if not self._hooks:
            self._hooks = [
                model.register_forward_pre_hook(self._noting(name), with_kwargs=True)
                for name, model in self._regions().items()
            ]

    def disarm(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def are_watched(self) -> bool:
        """Whether a step is being measured: hooks lie on modules then, and would be compiled into what is compiled now."""
        return bool(self._hooks)

    def follow(self) -> None:
        """Compile what grew; nothing where its code is known from before, or no step has shown how it is called.

        While a step is measured nothing is compiled; the boundary after it calls this again.
        """
        if self.are_watched:
            return
        for name, region in self._regions().items():
            structure = structure_of(region)
            known = self._known.setdefault(name, {()})
            if structure in known or name not in self._calls or _is_sharded(region):
                continue
            with self._watched():
                self._calls[name].repeat(region, region if self._whole is None else self._whole)
            self.rehearsals += 1
            known.add(structure)

    @property
    def are_one(self) -> bool:
        """Whether the model is trained through what ``torch.compile(model)`` returned."""
        return self._whole is not None

    def prepare(self, slot: str, seed_idx: int, data: bytes, *, kernel_id: str) -> None:
        """Compile what a join will change ahead of it: the kernel joins for as long as that takes, and nothing is left of it.

        What cannot be joined or compiled is told by the join itself, which meets it again.
        """
        if not self._regions():
            return
        with suppress(Exception):
            join(self._model, slot, seed_idx, data, kernel_id=kernel_id)
            try:
                self.follow()
            finally:
                detach(self._model, slot, seed_idx)

    def _regions(self) -> dict[str, nn.Module]:
        return compiled_regions(self._model) if self._whole is None else {"": self._model}

    def _noting(self, name: str) -> Callable[..., None]:
        noted = False

        def note(region: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal noted
            if not noted and torch.is_grad_enabled():
                self._calls[name], noted = call_of(region, args, kwargs), True

        return note


class EagerStep:
    """Lets the training step that is measured run eagerly: hooks see nothing of compiled code."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        weakref.finalize(self, self._stack.close)

    def begin(self) -> None:
        """Run what is compiled eagerly from now on."""
        self.end()
        self._stack.enter_context(eager())

    def end(self) -> None:
        """Run what is compiled as compiled again."""
        self._stack.close()


def _is_sharded(region: nn.Module) -> bool:
    """Tell whether a backward pass would reduce gradients across ranks and leave them on the parameters."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in region.modules())
