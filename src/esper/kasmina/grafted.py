"""What a slot's module becomes while something is joined to it."""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.blueprints import KernelModule
from esper.errors import ConfigError
from esper.ir import Reads
from esper.kasmina.morph import drop_role, role_of
from esper.kasmina.placement import CHILD


class Graft(nn.Module):
    """One joined kernel: ``h + alpha * F(x)``, x being what left the slot's module, h itself, or what entered it.

    Args:
        kernel: F.
        alpha: Strength; a buffer, so that changing it never recompiles.
        kernel_id: Content address of the kernel.
        blueprint: Name of its blueprint.

    Attributes:
        active: Whether the kernel is called at all; a Python state.
    """

    alpha: Tensor

    def __init__(self, kernel: KernelModule, alpha: Tensor, *, kernel_id: str, blueprint: str) -> None:
        super().__init__()
        self.kernel = kernel
        self.register_buffer("alpha", alpha)
        self.kernel_id = kernel_id
        self.blueprint = blueprint
        self.active = True
        self._reads_input = kernel.ir.reads is Reads.INPUT

    def forward(self, h: Tensor, entered: object) -> Tensor:
        """Return the host's value with what the kernel adds."""
        if not self.active:
            return h
        x = as_entered(entered) if self._reads_input else h
        added: Tensor = self.alpha * self.kernel(x)
        return h + added.to(h.dtype)


class Grafts(nn.ModuleDict):
    """The grafts of one slot, by index and in its order, whatever the order in which they joined."""

    def put(self, seed_idx: int, graft: Graft) -> None:
        """Join a graft; the order of parameters, and so of sums over them, depends on the indices alone."""
        self[str(seed_idx)] = graft
        for name in sorted(self, key=int):
            self._modules[name] = self._modules.pop(name)

    def grown(self, h: Tensor, entered: object) -> Tensor:
        """Return the host's value with what every graft adds.

        Args:
            h: What the module returned.
            entered: Its first argument.
        """
        if not isinstance(h, Tensor):
            raise ConfigError(
                f"a module with a graft returned a {type(h).__name__}",
                why="a graft computes on one tensor, which is what the module returned when its slot was found",
                todo="let it return one tensor always, or roll the graft back",
                code="ESP-2222",
            )
        if h.is_nested and h.layout is torch.strided:
            # What an nn.TransformerEncoder hands from layer to layer when it skips padding.
            padded = self.grown(dense(h), dense(entered))
            return torch._nested_from_padded_and_nested_example(padded, h)
        for graft in self.values():
            h = graft(h, entered)
        return h

    def forward(self, value: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Return the value itself: whoever calls every child of a module must not run the grafts a second time."""
        return value


class SlotRole:
    """A role that Esper gives the module of a slot."""


class GraftedModule(SlotRole):
    """The role of a slot's module while something is joined to it.

    Its child ``esper_grafts`` is hidden from iteration, so that a container which runs its children does not run it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the host's value with what the grafts add."""
        host: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        return grafts_of(cast(nn.Module, self)).grown(host, first_of(args))

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over the host's own children."""
        for name, module in super().named_children():  # type: ignore[misc]
            if name != CHILD:
                yield name, module

    def train(self, mode: bool = True) -> Any:
        """Set the mode, of the grafts too."""
        grafts_of(cast(nn.Module, self)).train(mode)
        return super().train(mode)  # type: ignore[misc]

    def apply(self, fn: Any) -> Any:
        """Apply a function to every submodule, the grafts too."""
        grafts_of(cast(nn.Module, self)).apply(fn)
        return super().apply(fn)  # type: ignore[misc]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if recurse:
            grafts_of(cast(nn.Module, self))._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[misc]


class GraftedSequence(GraftedModule):
    """The same role for ``nn.Sequential`` and ``nn.ModuleList``, whose forward iterates over themselves."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(_own(self).values())

    def __len__(self) -> int:
        return len(_own(self))

    def __getitem__(self, index: int | slice) -> nn.Module:
        with _alone(self):
            part: nn.Module = super().__getitem__(index)  # type: ignore[misc]
        if isinstance(index, slice):
            drop_role(part)
        return part

    def __delitem__(self, index: int | slice) -> None:
        with _alone(self):
            super().__delitem__(index)  # type: ignore[misc]


class GraftedMapping(GraftedModule):
    """The same role for ``nn.ModuleDict``, whose forward iterates over its keys or items."""

    def __iter__(self) -> Iterator[str]:
        return iter(_own(self))

    def __len__(self) -> int:
        return len(_own(self))

    def keys(self) -> KeysView[str]:
        """Return the host's own keys."""
        return _own(self).keys()

    def items(self) -> ItemsView[str, nn.Module]:
        """Return the host's own entries."""
        return _own(self).items()

    def values(self) -> ValuesView[nn.Module]:
        """Return the host's own modules."""
        return _own(self).values()


def role_for(module: nn.Module) -> type[GraftedModule]:
    """Return the role that a module takes when something is joined to it."""
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        return GraftedSequence
    return GraftedMapping if isinstance(module, nn.ModuleDict) else GraftedModule


def is_grafted(module: nn.Module) -> bool:
    """Tell whether something is joined to a module."""
    role = role_of(module)
    return role is not None and issubclass(role, GraftedModule)


def grafts_of(module: nn.Module) -> Grafts:
    """Return the grafts of a grafted module."""
    return cast(Grafts, module._modules[CHILD])


def obstacle(module: nn.Module) -> str | None:
    """Return why a module cannot take a role, or None where it can."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance, which would bypass the graft; choose the module around it"
    if type(module).__module__.startswith("torch.jit"):
        return "it is scripted: its code is fixed"
    role = role_of(module)
    if role is not None and not issubclass(role, SlotRole):
        return "it is wrapped on its own; esper.unwrap it first"
    return None


def first_of(args: tuple[Any, ...]) -> Any:
    """Return the first of a module's positional arguments, which is what a graft may read; None where there is none."""
    return args[0] if args else None


def as_entered(entered: object) -> Tensor:
    """Return what entered a module as the tensor that a graft reads.

    Raises:
        ConfigError: If it is none.
    """
    if isinstance(entered, Tensor):
        return entered
    raise ConfigError(
        "a module with a graft was called without a tensor as its first argument",
        why="the graft reads that, as the module was called so when its slot was found",
        todo="call it so always, or roll the graft back",
        code="ESP-2225",
    )


def dense(value: Any) -> Any:
    """Return a nested tensor padded with zeros, and anything else as it is."""
    nested = isinstance(value, Tensor) and value.is_nested and value.layout is torch.strided
    return value.to_padded_tensor(0.0) if nested else value


def _own(module: object) -> dict[str, nn.Module]:
    children = cast(nn.Module, module)._modules
    return {name: child for name, child in children.items() if name != CHILD and child is not None}


@contextmanager
def _alone(module: object) -> Iterator[None]:
    """Let a module be without its grafts inside the block, as its container's own code counts children."""
    host = cast(nn.Module, module)
    grafts = host._modules.pop(CHILD)
    try:
        yield
    finally:
        host._modules[CHILD] = grafts
