"""Living with ``torch.compile``: regions that grow, steps that must run eagerly, and dynamo's limits."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from esper.errors import ConfigError
from esper.kasmina.grafted import Graft
from esper.kasmina.morph import base_of
from esper.kasmina.placement import CHILD, KEY, Placement

SLOTS = "slots"
"""Every slot's module is a region."""
MODEL = "model"
"""The whole model is one region."""
Region = Callable[..., Any]

_rooms: dict[str, int] = {}
_structures: set[object] = set()
_codes: dict[type, Any] = {}


def compile_regions(
    model: nn.Module,
    regions: str | Sequence[str] = SLOTS,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
) -> nn.Module:
    """Compile parts of a model in place, so that a graft recompiles the part around it alone.

    As ``module.compile()`` does, but also where the module is a container or a layer of torch's own, of which that compiles
    nothing. Modules of one class share their compiled code as long as nothing has grown in them; ``state_dict`` keys stay.

    Args:
        model: Any module; what lies inside another chosen part is compiled with that.
        regions: ``"slots"`` of a wrapped model, ``"model"`` for the whole as one, or name patterns.
        backend: As ``torch.compile`` takes it; so are the rest.
        mode: For the backend.
        options: For the backend.
        dynamic: Whether sizes vary.
        fullgraph: Whether code that does not fit one graph is an error.

    Returns:
        The same model.

    Raises:
        ConfigError: If the slots are not known yet, or a pattern matches nothing.
    """
    for name in _outermost(_chosen(model, regions)):
        region = model.get_submodule(name)
        compiled = torch.compile(
            _entry(base_of(region)), backend=backend, mode=mode, options=options, dynamic=dynamic, fullgraph=fullgraph
        )
        # Where ``module.compile()`` puts its own; copies and pickles leave it out.
        region._compiled_call_impl = MethodType(compiled, region)
    make_room(model)
    return model


def compiled_regions(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules that were compiled in place, by name."""
    found = {name: module for name, module in model.named_modules() if module._compiled_call_impl is not None}
    return {name: found[name] for name in _outermost(found)}


def opened(model: nn.Module) -> nn.Module:
    """Return the module that ``torch.compile(module)`` wrapped, or the module itself."""
    inside = getattr(model, "_orig_mod", None) if type(model).__module__.startswith("torch._dynamo") else None
    return inside if isinstance(inside, nn.Module) else model


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code as it was written inside the block, because hooks and counters see nothing of compiled code.

    Torch has one switch for the whole process.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing the compiler takes over a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def structure_of(module: nn.Module) -> tuple[object, ...]:
    """Return what has grown in a module, so far as compiled code depends on it; empty where nothing has."""
    return tuple(
        (name, graft.kernel.ir.digest, graft.active)
        for name, graft in module.named_modules()
        if isinstance(graft, Graft)
    )


def make_room(model: nn.Module) -> None:
    """Allow dynamo as many compiled variants for each structure of a model as it allows without growth.

    Dynamo keeps the variants of all modules of one class, before and after every graft, in one list per code object, and
    runs code eagerly for good, with no more than a warning, when that is longer than ``recompile_limit`` (8).
    """
    for module in model.modules():
        if CHILD in module._modules:
            _structures.add((base_of(module), structure_of(module)))
    _structures.add((base_of(model), structure_of(model)))
    if "torch._dynamo" not in sys.modules:
        return
    from torch._dynamo import config

    for name in ("recompile_limit", "accumulated_recompile_limit"):
        limit = _rooms.setdefault(name, getattr(config, name))
        setattr(config, name, max(getattr(config, name), limit * (1 + len(_structures))))


def _region(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]


def _entry(base: type[nn.Module]) -> Region:
    """Return the function that is compiled for modules of one class; dynamo keeps what it compiled by code object."""
    if base not in _codes:
        _codes[base] = _region.__code__.replace(co_name=f"region_of_{base.__name__}")
    return FunctionType(_codes[base], globals(), f"region_of_{base.__name__}")


def _chosen(model: nn.Module, regions: str | Sequence[str]) -> list[str]:
    if regions == MODEL:
        return [""]
    names = [name for name, _ in model.named_modules() if name and CHILD not in name.split(".")]
    if regions == SLOTS:
        return _slots(model)
    patterns = [regions] if isinstance(regions, str) else list(regions)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"region pattern {pattern!r} matches no module",
                why=f"modules are {', '.join(names[:8])} ...",
                todo='give "slots", "model", or patterns of names',
                code="ESP-2240",
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _slots(model: nn.Module) -> list[str]:
    placement = vars(model).get(KEY)
    if not isinstance(placement, Placement) or not placement.ready:
        raise ConfigError(
            "the slots of this model are not known",
            why="it is not wrapped, or no input has shown their shapes yet",
            todo="call esper.wrap(model, example=batch) first, or name the regions",
            code="ESP-2241",
        )
    return list(placement.slots)


def _outermost(names: Sequence[str] | dict[str, nn.Module]) -> list[str]:
    chosen = set(names)

    def inside(name: str) -> bool:
        parts = name.split(".")
        return "" in chosen or any(".".join(parts[:depth]) in chosen for depth in range(1, len(parts)))

    return [name for name in names if not name or not inside(name)]
