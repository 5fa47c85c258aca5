"""Incubation: a kernel learns apart, on what a slot returns, and nothing that it does reaches the host (law 3)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import FunctionCtx

from esper.errors import ConfigError, Conflict
from esper.ir import Reads
from esper.kasmina.compiling import compiled_regions
from esper.kasmina.grafted import (
    GraftedMapping,
    GraftedModule,
    GraftedSequence,
    SlotRole,
    as_entered,
    first_of,
    role_for,
)
from esper.kasmina.morph import drop_role, take_role
from esper.kasmina.placement import CHILD, placement_of
from esper.kasmina.quiet import preserved_rng

NURSERY = "_esper_nursery"
"""Where a slot's module keeps what learns apart: a plain attribute, no module, parameter, buffer or key."""


@dataclass
class Incubation:
    """One kernel that learns apart.

    Attributes:
        kernel: F; no part of the model, so that neither its optimizer nor its clipping reaches it.
        kernel_id: Content address of the kernel that it was born from.
        blueprint: Name of its blueprint.
        reads: Whether F reads what leaves the slot's module, or what enters it.
        loss_scale: Returns by how much the loss is scaled, as a tensor, or None.
        passes: Backward passes that it learned from.
        failure: Why it learns no more, or None.
        sick: Whether it has returned a value that is not finite; on its device, so that nothing waits for it.
    """

    kernel: nn.Module
    kernel_id: str
    blueprint: str
    reads: Reads = Reads.OUTPUT
    loss_scale: Callable[[torch.device], Tensor] | None = None
    passes: int = 0
    failure: str | None = None
    sick: Tensor | None = None

    def learn(self, x: Tensor | None, gradient: Tensor, precision: "Precision") -> None:
        """Take the gradient that h + F(x) would hand to F; whatever goes wrong stays here and is noted."""
        if self.failure is not None:
            return
        try:
            with preserved_rng(), torch.enable_grad(), precision.applied(gradient.device):
                self._accumulate(as_entered(x), gradient)
        except Exception as error:
            self.failure = f"it raised {type(error).__name__}: {error}"
        self.passes += 1

    def _accumulate(self, x: Tensor, gradient: Tensor) -> None:
        added = self.kernel(x)
        if not isinstance(added, Tensor) or added.shape != gradient.shape:
            other = f"shape {tuple(added.shape)}" if isinstance(added, Tensor) else f"a {type(added).__name__}"
            self.failure = f"it returned {other}, and the slot returns shape {tuple(gradient.shape)}"
            return
        sick = ~torch.isfinite(added.detach()).all()
        self.sick = sick if self.sick is None else self.sick | sick
        learning = [parameter for parameter in self.kernel.parameters() if parameter.requires_grad]
        found: Sequence[Tensor | None]
        found = torch.autograd.grad(added, learning, gradient.to(added.dtype), allow_unused=True)
        if self.loss_scale is not None:
            found = _unscaled(found, self.loss_scale(x.device))
        for parameter, own in zip(learning, found, strict=True):
            if own is not None:
                parameter.grad = own if parameter.grad is None else parameter.grad + own


def _unscaled(gradients: Sequence[Tensor | None], scale: Tensor) -> list[Tensor | None]:
    """Return gradients without the scale of the loss; all zero where the scale was too large for one of them."""
    fits = torch.tensor(True, device=scale.device)
    for own in gradients:
        fits = fits if own is None else fits & torch.isfinite(own).all()
    return [None if own is None else torch.where(fits, own / scale.to(own.dtype), 0.0) for own in gradients]


@dataclass(frozen=True)
class Precision:
    """How autocast stood when the slot was run."""

    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, device: torch.device) -> "Precision":
        """Return how it stands now."""
        return cls(torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))

    @contextmanager
    def applied(self, device: torch.device) -> Iterator[None]:
        """Let it stand so inside the block."""
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.enabled, cache_enabled=False):
            yield


@dataclass
class Nursery:
    """What learns apart at one slot, by seed; a copy or a pickle of the model has an empty one.

    Attributes:
        seeds: By index.
        paused: Whether a probe runs, whose gradients are none of theirs.
        around: The compiled code that the module is called by, where values are tapped around that and not inside.
    """

    seeds: dict[int, Incubation] = field(default_factory=dict)
    paused: bool = False
    around: Callable[..., Any] | None = None

    def listens(self, h: object) -> bool:
        """Tell whether somebody here learns from this value."""
        return (
            isinstance(h, Tensor)
            and h.requires_grad
            and torch.is_grad_enabled()
            and not h.is_nested
            and not self.paused
            and any(seed.failure is None for seed in self.seeds.values())
        )

    @property
    def reads(self) -> frozenset[Reads]:
        """What the seeds here read."""
        return frozenset(seed.reads for seed in self.seeds.values())

    def __reduce__(self) -> tuple[type["Nursery"], tuple[()]]:
        return Nursery, ()


class Tap(torch.autograd.Function):
    """Returns the host's value and passes its gradient on unchanged; what learns apart gets a finite copy of both.

    ``h + (f - f.detach())`` and ``torch.where(alpha == 0, h, h + f)`` would let a NaN in f through to the host.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, h: Tensor, nursery: Nursery, entered: object) -> Tensor:
        """Return the host's value: the same memory, and no view, so that what follows may change it in place."""
        own = cast(Any, ctx)
        own.nursery, own.precision = nursery, Precision.now(h.device)
        own.seen = {reads: _copied(h if reads is Reads.OUTPUT else entered) for reads in nursery.reads}
        return h.detach()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the host's gradient itself."""
        own = cast(Any, ctx)
        if not own.nursery.paused:
            finite = torch.nan_to_num(gradient.detach(), nan=0.0, posinf=0.0, neginf=0.0)
            for seed in own.nursery.seeds.values():
                if seed.reads in own.seen:  # and was there when the host was run
                    seed.learn(own.seen[seed.reads], finite, own.precision)
        return gradient, None, None


def _copied(value: object) -> Tensor | None:
    return value.detach().clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else None


def _tapped(h: Tensor, nursery: Nursery, entered: Any) -> Tensor:
    """Return a value that equals ``h`` and from whose gradient the nursery learns.

    Args:
        h: What the slot's module returned.
        nursery: Its own.
        entered: The module's first argument.
    """
    apart = entered.detach() if isinstance(entered, Tensor) else None
    found: Tensor = Tap.apply(h, nursery, apart)  # type: ignore[no-untyped-call]
    return found


tapped = _disable_dynamo(_tapped)
"""The same, which no compiler traces; ``torch.compiler.disable`` would import the compiler here and now."""


class TappedCall:
    """How a compiled module is called while something learns apart from it: its code stays the very same.

    Args:
        module: The slot's module.
        nursery: Its own; ``around`` is the compiled code.
    """

    def __init__(self, module: nn.Module, nursery: Nursery) -> None:
        self._module, self._nursery = module, nursery

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's value."""
        assert self._nursery.around is not None
        h = self._nursery.around(*args, **kwargs)
        if not self._nursery.listens(h):
            return h
        for seed in self._nursery.seeds.values():  # no role of the module's class sees to this
            seed.kernel.to(h.device).train(self._module.training)
        return tapped(h, self._nursery, first_of(args))


class IncubatingModule(SlotRole):
    """The role of a slot's module while something learns apart from it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's value."""
        h = super().forward(*args, **kwargs)  # type: ignore[misc]
        nursery: Nursery | None = vars(self).get(NURSERY)
        if nursery is None or not nursery.listens(h) or "_is_replica" in vars(self):
            return h
        return tapped(h, nursery, first_of(args))

    def train(self, mode: bool = True) -> Any:
        """Set the mode, of what learns apart too."""
        for seed in _seeds_of(self):
            seed.kernel.train(mode)
        return super().train(mode)  # type: ignore[misc]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        for seed in _seeds_of(self) if recurse else ():
            seed.kernel._apply(fn)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[misc]


class IncubatingGraftedModule(IncubatingModule, GraftedModule):
    """The same where something is joined already."""


class IncubatingGraftedSequence(IncubatingModule, GraftedSequence):
    """The same for ``nn.Sequential`` and ``nn.ModuleList``."""


class IncubatingGraftedMapping(IncubatingModule, GraftedMapping):
    """The same for ``nn.ModuleDict``."""


_WITH_GRAFTS: dict[type[GraftedModule], type[IncubatingModule]] = {
    GraftedModule: IncubatingGraftedModule,
    GraftedSequence: IncubatingGraftedSequence,
    GraftedMapping: IncubatingGraftedMapping,
}


def plant(model: nn.Module, slot: str, seed_idx: int, incubation: Incubation) -> None:
    """Let a kernel learn apart at a slot.

    Args:
        model: Wrapped model.
        slot: Name of the slot.
        seed_idx: Index of the seed.
        incubation: The kernel, of the type and on the device of the slot's module.

    Raises:
        Conflict: If something learns there already.
        ConfigError: If the class of the module cannot be swapped, or it lies inside a compiled region.
    """
    module = placement_of(model).place(slot).module
    if _is_inside(slot, compiled_regions(model)):
        raise inside_compiled(slot)
    nursery = vars(module).get(NURSERY) or Nursery()
    if seed_idx in nursery.seeds:
        raise Conflict(f"seed {seed_idx} of {slot} is taken", todo="choose another seed")
    if nursery.around is None and module._compiled_call_impl is not None:
        nursery.around = module._compiled_call_impl
        module._compiled_call_impl = TappedCall(module, nursery)
    elif nursery.around is None:
        fit_role(module, grafted=CHILD in module._modules, incubating=True)
    incubation.kernel.train(module.training)
    nursery.seeds[seed_idx] = incubation
    vars(module)[NURSERY] = nursery


def uproot(model: nn.Module, slot: str, seed_idx: int) -> Incubation:
    """Take a kernel that learns apart out again; when the last one goes, the module is what it was before.

    Raises:
        Conflict: If nothing learns there.
    """
    module = placement_of(model).place(slot).module
    nursery: Nursery | None = vars(module).get(NURSERY)
    if nursery is None or seed_idx not in nursery.seeds:
        raise Conflict(f"nothing learns apart at seed {seed_idx} of {slot}")
    if len(nursery.seeds) == 1:
        if nursery.around is None:
            fit_role(module, grafted=CHILD in module._modules, incubating=False)
        elif isinstance(module._compiled_call_impl, TappedCall):  # and not what was compiled since
            module._compiled_call_impl = nursery.around
        del vars(module)[NURSERY]
    return nursery.seeds.pop(seed_idx)


@contextmanager
def paused(model: nn.Module) -> Iterator[None]:
    """Let nothing learn from what runs inside the block, such as a probe."""
    nurseries = [vars(module)[NURSERY] for module in model.modules() if NURSERY in vars(module)]
    for nursery in nurseries:
        nursery.paused = True
    try:
        yield
    finally:
        for nursery in nurseries:
            nursery.paused = False


def fit_role(module: nn.Module, *, grafted: bool, incubating: bool) -> None:
    """Give a slot's module the class that fits what is joined to it and what learns apart from it.

    Raises:
        ConfigError: If its class cannot be swapped, or somebody else changed it since.
    """
    if not grafted and not incubating:
        drop_role(module)
        return
    role = role_for(module)
    take_role(module, role if not incubating else _WITH_GRAFTS[role] if grafted else IncubatingModule)


def taps_inside(module: nn.Module) -> bool:
    """Tell whether a module's own forward hands its value on to what learns apart."""
    nursery: Nursery | None = vars(module).get(NURSERY)
    return nursery is not None and nursery.around is None


def inside_compiled(slot: str) -> ConfigError:
    """Return the error of a slot whose value is no longer to be had between two regions of compiled code."""
    return ConfigError(
        f"nothing can learn apart at {slot}",
        why="it lies inside a compiled region, and a value that is tapped there would break its graph",
        todo="compile slot by slot, as esper.compile(model) does, or graft without incubate=",
        code="ESP-2224",
    )


def _is_inside(slot: str, regions: Mapping[str, object]) -> bool:
    return any(region != slot and (not region or slot.startswith(f"{region}.")) for region in regions)


def _seeds_of(module: object) -> tuple[Incubation, ...]:
    nursery: Nursery | None = vars(module).get(NURSERY)
    return () if nursery is None else tuple(nursery.seeds.values())
