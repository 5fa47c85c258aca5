"""Joining a kernel to a slot of the host, and taking it out again."""

import json
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from esper.blueprints import KernelModule, initial_state, load_kernel
from esper.errors import ConfigError, Conflict
from esper.ir import BlueprintIR, unlike
from esper.kasmina.compiling import make_room
from esper.kasmina.grafted import Graft, Grafts, grafts_of, is_grafted, obstacle
from esper.kasmina.incubation import fit_role, taps_inside
from esper.kasmina.placement import CHILD, Place, placement_of


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
    kernel = prepared(model, slot, seed_idx, data, kernel_id=kernel_id)
    return adopt(model, slot, seed_idx, kernel, kernel_id=kernel_id, blueprint=blueprint, alpha=alpha)


def prepared(model: nn.Module, slot: str, seed_idx: int, data: bytes, *, kernel_id: str) -> KernelModule:
    """Return a kernel as a module that fits a slot in width, type, device and memory format; the model is left alone.

    Raises:
        KernelRejected: If the bytes are not that kernel.
        ConfigError: If the kernel does not fit the slot, or nothing can be joined there.
        Conflict: If the seed is taken.
    """
    place = placement_of(model).place(slot)
    kernel = load_kernel(data, digest=kernel_id)
    _check_fit(kernel.ir, place)
    _check_free(place, seed_idx)
    _like_host(kernel, place.module, model)
    return kernel


def rebuilt(model: nn.Module, slot: str, ir: str) -> KernelModule:
    """Return the module of a blueprint that fits a slot; its values come from a state afterwards."""
    kernel = _of_ir(ir)
    _like_host(kernel, placement_of(model).place(slot).module, model)
    return kernel


def adopt(
    model: nn.Module, slot: str, seed_idx: int, kernel: KernelModule, *, kernel_id: str, blueprint: str, alpha: float
) -> Newborn:
    """Join a module that was prepared for a slot; see ``join``."""
    place = placement_of(model).place(slot)
    _attach(model, place, seed_idx, kernel, kernel_id=kernel_id, blueprint=blueprint, alpha=alpha)
    path = f"{slot}.{CHILD}.{seed_idx}.kernel"
    parameters = {f"{path}.{name}": parameter for name, parameter in kernel.named_parameters()}
    return Newborn(slot, seed_idx, kernel_id, kernel, parameters)


def detach(model: nn.Module, slot: str, seed_idx: int) -> None:
    """Take a graft out; when the last one goes, the module is what it was before.

    Raises:
        Conflict: If nothing is joined there.
        ConfigError: If somebody else changed the class of the module since; nothing is taken out then.
    """
    module = placement_of(model).place(slot).module
    _graft(module, slot, seed_idx)
    if len(grafts_of(module)) == 1:
        fit_role(module, grafted=False, incubating=taps_inside(module))
        del module._modules[CHILD]
    else:
        del grafts_of(module)[str(seed_idx)]
    make_room(model)


def set_active(model: nn.Module, slot: str, seed_idx: int, active: bool) -> None:
    """Switch a graft on or off; an inactive one is not called.

    Raises:
        Conflict: If nothing is joined there.
    """
    _graft(placement_of(model).place(slot).module, slot, seed_idx).active = active
    make_room(model)


@torch.no_grad()
def set_strength(model: nn.Module, slot: str, seed_idx: int, alpha: float) -> None:
    """Set the strength of a graft.

    Raises:
        Conflict: If nothing is joined there.
    """
    _graft(placement_of(model).place(slot).module, slot, seed_idx).alpha.fill_(alpha)


def strength(model: nn.Module, slot: str, seed_idx: int) -> float:
    """Return the strength of a graft.

    Raises:
        Conflict: If nothing is joined there.
    """
    return float(_graft(placement_of(model).place(slot).module, slot, seed_idx).alpha)


def topology(model: nn.Module) -> tuple[GraftEntry, ...]:
    """Return every graft of a model as data, in forward order."""
    return tuple(
        GraftEntry(
            name, int(index), graft.kernel_id, graft.blueprint, graft.kernel.ir.canonical().decode(), graft.active
        )
        for name, place in placement_of(model).slots.items()
        if is_grafted(place.module)
        for index, graft in cast("dict[str, Graft]", dict(grafts_of(place.module).items())).items()
    )


def restore_topology(model: nn.Module, entries: tuple[GraftEntry, ...]) -> None:
    """Make a model's grafts exactly ``entries``; values of rebuilt ones come from a state afterwards.

    Parameters of grafts that stay are the same objects as before.

    Raises:
        NotFound: If the model has no such slot; it is left as it was.
    """
    places = {(entry.slot, entry.seed_idx): placement_of(model).place(entry.slot) for entry in entries}
    wanted = {(entry.slot, entry.seed_idx): entry for entry in entries}
    present = {(now.slot, now.seed_idx): now for now in topology(model)}
    for key, now in present.items():
        if key not in wanted or wanted[key].ir != now.ir:
            detach(model, *key)
    for key, entry in wanted.items():
        if key not in present or present[key].ir != entry.ir:
            _rebuild(model, places[key], entry)
        graft = _graft(places[key].module, *key)
        graft.kernel_id, graft.blueprint, graft.active = entry.kernel_id, entry.blueprint, entry.active


def _graft(module: nn.Module, slot: str, seed_idx: int) -> Graft:
    if not is_grafted(module) or str(seed_idx) not in grafts_of(module):
        raise Conflict(f"nothing is joined to seed {seed_idx} of {slot}")
    return cast(Graft, grafts_of(module)[str(seed_idx)])


def _rebuild(model: nn.Module, place: Place, entry: GraftEntry) -> None:
    kernel = _of_ir(entry.ir)
    _attach(model, place, entry.seed_idx, kernel, kernel_id=entry.kernel_id, blueprint=entry.blueprint, alpha=1.0)


def _of_ir(text: str) -> KernelModule:
    ir = BlueprintIR.from_json(json.loads(text))
    return KernelModule(ir, initial_state(ir, seed=0, dtype=torch.float32))


def _attach(
    model: nn.Module,
    place: Place,
    seed_idx: int,
    kernel: KernelModule,
    *,
    kernel_id: str,
    blueprint: str,
    alpha: float,
) -> None:
    module = place.module
    _check_free(place, seed_idx)
    like = _like_host(kernel, module, model)
    if (distribute := placement_of(model).distribute) is not None:
        distribute(kernel, place)
    strength = torch.full((), alpha, dtype=like.dtype, device=like.device)
    graft = Graft(kernel, strength, kernel_id=kernel_id, blueprint=blueprint)
    graft.train(module.training)
    if not is_grafted(module):
        fit_role(module, grafted=True, incubating=taps_inside(module))
        module._modules[CHILD] = Grafts().train(module.training)
    grafts_of(module).put(seed_idx, graft)
    make_room(model)


def _like_host(kernel: KernelModule, module: nn.Module, model: nn.Module) -> Tensor:
    """Give a kernel the type, device and memory format of the module that it joins, or else of the model.

    Returns:
        An empty tensor of that type and device.
    """
    own = _floating(module) or _floating(model) or list(kernel.parameters())
    # A module of several types computes in that of its bulk; one spread over devices returns where its last layer lies.
    like = torch.empty((), dtype=max(own, key=Tensor.numel).dtype, device=own[-1].device)
    kernel.to(device=like.device, dtype=like.dtype)
    images = [tensor for tensor in own if tensor.ndim == 4]
    # A 1x1 kernel is contiguous in both formats and tells nothing.
    if any(not t.is_contiguous() for t in images) and all(
        t.is_contiguous(memory_format=torch.channels_last) for t in images
    ):
        kernel.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return like


def _floating(module: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]


def _check_fit(ir: BlueprintIR, place: Place) -> None:
    if difference := unlike(ir, place.site()):
        raise ConfigError(
            f"the kernel does not fit slot {place.name}",
            why=difference,
            todo="draw the blueprint for this slot's site",
            code="ESP-2220",
        )


def _check_free(place: Place, seed_idx: int) -> None:
    reason = obstacle(place.module)
    if reason is not None:
        raise ConfigError(f"nothing can be joined to {place.name}", why=reason, code="ESP-2221")
    if seed_idx < 0:
        raise ConfigError(f"seed {seed_idx} of {place.name}", why="seeds are counted from 0", code="ESP-2223")
    if is_grafted(place.module) and str(seed_idx) in grafts_of(place.module):
        raise Conflict(f"seed {seed_idx} of {place.name} is taken", todo="choose another seed or take it out first")
