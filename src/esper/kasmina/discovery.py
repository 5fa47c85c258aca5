"""Finding the places of a model where ``y = h + F(h)`` makes sense."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from esper.errors import ConfigError
from esper.ir import Layout
from esper.kasmina.observe import Record, Sighting, tensors_in, watched
from esper.kasmina.placement import Place, Slot
from esper.kasmina.quiet import quiet_eval

Wanted: TypeAlias = str | Slot | type[nn.Module] | Sequence[str | type[nn.Module] | Slot]
"""What ``wrap`` is asked for: ``"auto"``, patterns, types or Slots."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LEAVES = (nn.Linear, nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class Findings:
    """What was found in a model.

    Attributes:
        places: Slots in forward order.
        refusals: Names that were considered and left out, with the reason.
    """

    places: tuple[Place, ...]
    refusals: dict[str, str]


def run_example(model: nn.Module, example: object) -> Record:
    """Run a model once on an example, leaving no trace, and return what was seen.

    Args:
        model: The model.
        example: A tensor, a tuple of arguments, or a dict of keyword arguments.

    Raises:
        ConfigError: If the model does not accept the example.
    """
    args, kwargs = _arguments(example)
    try:
        with quiet_eval(model), watched(model) as record:
            output = model(*args, **kwargs)
            note_final(record, output)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(
            "the model does not run on the example",
            why=str(error),
            todo="give example= one input batch as the training loop does: a tensor, a tuple of arguments or a dict",
            code="ESP-2210",
        ) from error
    return record


def note_final(record: Record, output: object) -> None:
    """Write down which tensors a model returned."""
    record.final = {id(tensor) for tensor in tensors_in(output)}


def find_places(model: nn.Module, wanted: Wanted, record: Record) -> Findings:
    """Choose slots and learn their shapes.

    Args:
        model: The model.
        wanted: What was asked for.
        record: One forward pass.

    Raises:
        ConfigError: If a pattern matches nothing, or nothing that was asked for can grow.
    """
    chosen, refusals = _automatic(model, record) if wanted == "auto" else _by_hand(model, wanted)
    modules = dict(model.named_modules())
    drafts: list[tuple[int, Slot, nn.Module, Layout, Sighting]] = []
    for slot in chosen:
        module = modules[slot.name]
        seen = record.sightings.get(module)
        reason = refusal(model, slot.name, seen, automatic=wanted == "auto")
        layout = None if reason or seen is None else slot.layout or _layout(seen)
        if reason is None and layout is None:
            reason = "its layer type does not tell where the channels are; name it as esper.Slot(name, layout=...)"
        if reason is not None:
            refusals[slot.name] = reason
        elif seen is not None and layout is not None:
            drafts.append((seen.order, slot, module, layout, seen))
    drafts.sort(key=lambda draft: draft[0])
    if not drafts and wanted != "auto":
        reasons = "; ".join(f"{name}: {why}" for name, why in refusals.items())
        raise ConfigError(
            "none of the slots can grow", why=reasons, todo="see esper.plan(model, example)", code="ESP-2212"
        )
    return Findings(_staged(drafts), refusals)


def check_wanted(model: nn.Module, wanted: Wanted) -> None:
    """Refuse patterns that match nothing, before the model has run.

    Raises:
        ConfigError: With near matches.
    """
    if wanted != "auto":
        _by_hand(model, wanted)


def refusal(model: nn.Module, name: str, seen: Sighting | None, *, automatic: bool) -> str | None:
    """Return why nothing can grow at a module, or None where something can."""
    skipping = _skips_submodules(model, name)
    if skipping is not None:
        return f"{skipping} skips its submodules on its fast path in eval mode; choose the layer itself"
    if seen is None or seen.calls == 0:
        return "its forward is never called"
    if seen.shape is None:
        return "its output is not one tensor"
    if seen.dtype is None or not seen.dtype.is_floating_point:
        return f"its output is of type {seen.dtype}"
    if seen.calls > 1 and automatic:
        return f"it runs {seen.calls} times in one pass; name it by hand to grow all uses at once"
    return None


# -- automatic choice ----------------------------------------------------------------------------------------------------


def _automatic(model: nn.Module, record: Record) -> tuple[list[Slot], dict[str, str]]:
    """Prefer repeated blocks, then nested Sequentials, then single layers; never what makes the model's own output."""
    names = _unique_names(model)
    refusals = dict.fromkeys(_shared_names(model), "it is reached by several names")

    def usable(name: str, module: nn.Module) -> bool:
        seen = record.sightings.get(module)
        return seen is not None and seen.output not in record.final and _layout_known(seen)

    blocks = _outermost(name for name in _blocks(model, names) if usable(name, names[name]))
    if not blocks:
        inner = [n for n, m in names.items() if n and isinstance(m, nn.Sequential) and usable(n, m)]
        blocks = [name for name in inner if not any(other.startswith(f"{name}.") for other in inner)]
    if not blocks:
        blocks = [n for n, m in names.items() if isinstance(m, LEAVES) and usable(n, m)]
    for name, module in names.items():
        seen = record.sightings.get(module)
        if isinstance(module, LEAVES) and seen is not None and seen.output in record.final:
            refusals[name] = "it makes the model's own output"
    return [Slot(name) for name in blocks], refusals


def _blocks(model: nn.Module, names: dict[str, nn.Module]) -> list[str]:
    """Return composite modules that are members of a container or one of several of their class."""
    composite = {
        name: module
        for name, module in names.items()
        if name and any(True for _ in module.children()) and not isinstance(module, CONTAINERS)
    }
    count = Counter(type(module) for module in composite.values())
    return [
        name
        for name, module in composite.items()
        if count[type(module)] > 1 or isinstance(_parent(model, name), CONTAINERS)
    ]


def _outermost(names: Iterable[str]) -> list[str]:
    chosen = list(names)
    return [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]


def _unique_names(model: nn.Module) -> dict[str, nn.Module]:
    shared = _shared_names(model)
    return {name: module for name, module in model.named_modules() if name not in shared}


def _shared_names(model: nn.Module) -> set[str]:
    every = list(model.named_modules(remove_duplicate=False))
    count = Counter(id(module) for _, module in every)
    return {name for name, module in every if count[id(module)] > 1}


# -- choice by hand ------------------------------------------------------------------------------------------------------


def _by_hand(model: nn.Module, wanted: Wanted) -> tuple[list[Slot], dict[str, str]]:
    items = [wanted] if isinstance(wanted, (str, Slot, type)) else list(wanted)
    names = [name for name, _ in model.named_modules() if name]
    modules = dict(model.named_modules())
    chosen: dict[str, Slot] = {}
    for item in items:
        for slot in _matches(item, names, modules):
            chosen.setdefault(slot.name, slot)
    return list(chosen.values()), {}


def _matches(item: str | Slot | type[nn.Module], names: list[str], modules: dict[str, nn.Module]) -> list[Slot]:
    if isinstance(item, Slot):
        found = [item] if item.name in modules else []
    elif isinstance(item, type):
        found = [Slot(name) for name in names if isinstance(modules[name], item)]
    elif isinstance(item, str):
        found = [Slot(name) for name in names if fnmatchcase(name, item)]
    else:
        raise ConfigError(
            f"slots has a {type(item).__name__}",
            todo='give "auto", patterns, module types or esper.Slot(...)',
            code="ESP-2213",
        )
    if not found:
        raise _no_match(item, names)
    return found


def _no_match(item: str | Slot | type[nn.Module], names: list[str]) -> ConfigError:
    text = item.name if isinstance(item, Slot) else getattr(item, "__name__", str(item))
    near = get_close_matches(text, names, n=3, cutoff=0.4)
    hint = f"Did you mean {', '.join(near)}?" if near else f"Modules are {', '.join(names[:8])} ..."
    return ConfigError(f"slot pattern {text!r} matches no module", todo=hint, code="ESP-2211")


# -- shapes --------------------------------------------------------------------------------------------------------------


def _layout_known(seen: Sighting) -> bool:
    return _layout(seen) is not None


def _layout(seen: Sighting) -> Layout | None:
    """Return the layout of an output from the last layer inside the module that tells."""
    if seen.shape is None or seen.family is None:
        return None
    rank = len(seen.shape)
    if seen.family == "first" and rank > 2:
        return {3: Layout.CHANNELS_1D, 4: Layout.CHANNELS_2D}.get(rank)
    return Layout.TOKENS if rank == 3 else Layout.FEATURES if rank >= 2 else None


def _staged(drafts: list[tuple[int, Slot, nn.Module, Layout, Sighting]]) -> tuple[Place, ...]:
    places: list[Place] = []
    stage, before = -1, None
    for order, (_, slot, module, layout, seen) in enumerate(drafts):
        channels, extent = _size(layout, seen.shape or ())
        if before != (layout, channels, extent):
            stage, before = stage + 1, (layout, channels, extent)
        places.append(Place(slot.name, module, layout, channels, extent, order, stage, slot.causal))
    return tuple(places)


def _size(layout: Layout, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    if layout.is_channels_first:
        return shape[1], shape[2:]
    return shape[-1], shape[1:-1] if layout is Layout.TOKENS else ()


def _skips_submodules(model: nn.Module, name: str) -> str | None:
    """Return the class of an enclosing layer that computes on its submodules' weights without calling them."""
    parts = name.split(".")
    for depth in range(1, len(parts)):
        outer = model.get_submodule(".".join(parts[:depth]))
        if isinstance(outer, (nn.TransformerEncoderLayer, nn.MultiheadAttention)):
            return type(outer).__name__
    return None


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _arguments(example: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (example, {}) if isinstance(example, tuple) else ((example,), {})
