"""Joining a kernel to a slot of the host, and taking it out again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.blueprints import KernelModule, initial_state, load_kernel
from esper.errors import ConfigError, Conflict
from esper.ir import BlueprintIR
from esper.kasmina.morph import drop_role, role_of, take_role
from esper.kasmina.placement import Place, placement_of

CHILD = "esper_grafts"
"""Name of the one child that a grafted module has more than its host."""


class Graft(nn.Module):
    """One joined kernel: ``h + alpha * F(h)``.

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

    def forward(self, h: Tensor) -> Tensor:
        """Return the host's value with what the kernel adds."""
        if not self.active:
            return h
        added: Tensor = self.alpha * self.kernel(h)
        return h + added.to(h.dtype)


class Grafts(nn.ModuleDict):
    """The grafts of one slot, applied in the order of their index."""

    def forward(self, h: Tensor) -> Tensor:
        """Return the host's value with what every graft adds."""
        for name in sorted(self, key=int):
            h = self[name](h)
        return h


class GraftedModule:
    """The role of a slot's module while something is joined to it.

    Its child ``esper_grafts`` is hidden from iteration, so that a container which runs its children does not run it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the host's value with what the grafts add."""
        host: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        grown: Tensor = grafts_of(cast(nn.Module, self))(host)
        return grown

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


class GraftedSequential(GraftedModule):
    """The same role for ``nn.Sequential``, whose forward iterates over itself."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(_own(self).values())

    def __len__(self) -> int:
        return len(_own(self))

    def __getitem__(self, index: int | slice) -> nn.Module:
        return nn.Sequential(*_own(self).values())[index]


@dataclass(frozen=True)
class Newborn:
    """A graft that has just joined.

    Attributes:
        slot: Name of the slot.
        seed_idx: Index of the seed.
        kernel_id: Content address of the kernel.
        kernel: The module.
        parameters: Its parameters by qualified name in the model.
    """

    slot: str
    seed_idx: int
    kernel_id: str
    kernel: KernelModule
    parameters: dict[str, nn.Parameter]


@dataclass(frozen=True)
class GraftEntry:
    """One graft as data.

    Attributes:
        slot: Name of the slot.
        seed_idx: Index of the seed.
        kernel_id: Content address of the kernel that it was born from.
        blueprint: Name of the blueprint.
        ir: Canonical JSON of the blueprint.
        active: Whether it is called.
    """

    slot: str
    seed_idx: int
    kernel_id: str
    blueprint: str
    ir: str
    active: bool = True


def grafts_of(module: nn.Module) -> Grafts:
    """Return the grafts of a grafted module."""
    return cast(Grafts, module._modules[CHILD])


def join(
    model: nn.Module, slot: str, seed_idx: int, data: bytes, *, kernel_id: str, blueprint: str = "", alpha: float = 1.0
) -> Newborn:
    """Join a kernel to a slot.

    Args:
        model: Wrapped model.
        slot: Name of the slot.
        seed_idx: Index of the seed; seeds of one slot apply in order.
        data: The kernel's bytes.
        kernel_id: Their digest, verified before anything is parsed.
        blueprint: Name of the design, for people.
        alpha: Strength of the path; 1 for a kernel that is born with a zero factor.

    Raises:
        KernelRejected: If the bytes are not that kernel.
        ConfigError: If the kernel does not fit the slot.
        Conflict: If the seed is taken.
    """
    place = placement_of(model).place(slot)
    kernel = load_kernel(data, digest=kernel_id)
    _check_fit(kernel.ir, place)
    _attach(place, seed_idx, kernel, kernel_id=kernel_id, blueprint=blueprint, alpha=alpha)
    path = f"{slot}.{CHILD}.{seed_idx}.kernel"
    parameters = {f"{path}.{name}": parameter for name, parameter in kernel.named_parameters()}
    return Newborn(slot, seed_idx, kernel_id, kernel, parameters)


def detach(model: nn.Module, slot: str, seed_idx: int) -> None:
    """Take a graft out; when the last one goes, the module is what it was before.

    Raises:
        Conflict: If nothing is joined there.
    """
    module = placement_of(model).place(slot).module
    if not is_grafted(module) or str(seed_idx) not in grafts_of(module):
        raise Conflict(f"nothing is joined to seed {seed_idx} of {slot}")
    del grafts_of(module)[str(seed_idx)]
    if not len(grafts_of(module)):
        del module._modules[CHILD]
        drop_role(module)


def set_active(model: nn.Module, slot: str, seed_idx: int, active: bool) -> None:
    """Switch a graft on or off; an inactive one is not called."""
    module = placement_of(model).place(slot).module
    cast(Graft, grafts_of(module)[str(seed_idx)]).active = active


def is_grafted(module: nn.Module) -> bool:
    """Tell whether something is joined to a module."""
    return role_of(module) in (GraftedModule, GraftedSequential)


def topology(model: nn.Module) -> tuple[GraftEntry, ...]:
    """Return every graft of a model as data, in forward order."""
    return tuple(
        GraftEntry(
            name, int(index), graft.kernel_id, graft.blueprint, graft.kernel.ir.canonical().decode(), graft.active
        )
        for name, place in placement_of(model).slots.items()
        if is_grafted(place.module)
        for index, graft in sorted(cast("dict[str, Graft]", dict(grafts_of(place.module).items())).items())
    )


def restore_topology(model: nn.Module, entries: tuple[GraftEntry, ...]) -> None:
    """Make a model's grafts exactly ``entries``; values of rebuilt ones come from a state afterwards.

    Parameters of grafts that stay are the same objects as before.
    """
    wanted = {(entry.slot, entry.seed_idx): entry for entry in entries}
    for now in topology(model):
        entry = wanted.get((now.slot, now.seed_idx))
        if entry is None or entry.ir != now.ir:
            detach(model, now.slot, now.seed_idx)
    present = {(now.slot, now.seed_idx) for now in topology(model)}
    for key, entry in wanted.items():
        if key not in present:
            _rebuild(placement_of(model).place(entry.slot), entry)
        set_active(model, entry.slot, entry.seed_idx, entry.active)


def _rebuild(place: Place, entry: GraftEntry) -> None:
    ir = BlueprintIR.from_json(json.loads(entry.ir))
    kernel = KernelModule(ir, initial_state(ir, seed=0, dtype=torch.float32))
    _attach(place, entry.seed_idx, kernel, kernel_id=entry.kernel_id, blueprint=entry.blueprint, alpha=1.0)


def _attach(place: Place, seed_idx: int, kernel: KernelModule, *, kernel_id: str, blueprint: str, alpha: float) -> None:
    module = place.module
    if is_grafted(module) and str(seed_idx) in grafts_of(module):
        raise Conflict(f"seed {seed_idx} of {place.name} is taken", todo="choose another seed or take it out first")
    _like_host(kernel, module)
    own = next(iter(kernel.parameters()))
    graft = Graft(
        kernel,
        torch.full((), alpha, dtype=own.dtype, device=own.device),
        kernel_id=kernel_id,
        blueprint=blueprint,
    )
    graft.train(module.training)
    if not is_grafted(module):
        _check_swappable(place)
        take_role(module, GraftedSequential if isinstance(module, nn.Sequential) else GraftedModule)
        module._modules[CHILD] = Grafts()
    grafts_of(module)[str(seed_idx)] = graft


def _like_host(kernel: KernelModule, module: nn.Module) -> None:
    """Give a kernel the type, device and memory format of the module that it joins."""
    own = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    if own:
        kernel.to(device=own[0].device, dtype=own[0].dtype)
    images = [tensor for tensor in own if tensor.ndim == 4]
    if images and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in images):
        kernel.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check_fit(ir: BlueprintIR, place: Place) -> None:
    if (ir.layout, ir.channels) != (place.layout, place.channels):
        raise ConfigError(
            f"the kernel does not fit slot {place.name}",
            why=f"it is made for {ir.channels} channels in {ir.layout}; the slot has {place.channels} in {place.layout}",
            todo="draw the blueprint for this slot's site",
            code="ESP-2220",
        )


def _check_swappable(place: Place) -> None:
    if "forward" in vars(place.module):
        raise ConfigError(
            f"the forward of {place.name} was replaced on the instance",
            why="what replaced it would bypass the graft",
            todo="choose the module around it",
            code="ESP-2221",
        )


def _own(module: object) -> dict[str, nn.Module]:
    children = cast(nn.Module, module)._modules
    return {name: child for name, child in children.items() if name != CHILD and child is not None}
