"""Finding the places of a model where ``y = h + F(h)`` makes sense."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn
from torch.nn.parameter import is_lazy

from esper.errors import ConfigError, EsperError
from esper.ir import Layout
from esper.kasmina.activations import activation_at
from esper.kasmina.compiling import eager
from esper.kasmina.decoding import alone, decodes_with_cache
from esper.kasmina.grafted import obstacle
from esper.kasmina.layouts import channels_and_extent, entering, fits, positions
from esper.kasmina.observe import Record, Sighting, tensors_in, watched
from esper.kasmina.placement import CHILD, Place, Slot
from esper.kasmina.quiet import quiet_eval

Wanted: TypeAlias = str | Slot | type[nn.Module] | Sequence[str | type[nn.Module] | Slot]
"""What ``wrap`` is asked for: ``"auto"``, patterns, types or Slots."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LEAVES = (nn.Linear, nn.Conv1d, nn.Conv2d)
Draft: TypeAlias = tuple[Sighting, Slot, nn.Module, Layout, int]


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
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ConfigError(
            "the model has lazy modules, whose shapes are not known yet",
            why="a trial run would draw their weights",
            todo="run the model once first",
            code="ESP-2214",
        )
    args, kwargs = arguments(example)
    try:
        with quiet_eval(model), eager(), watched(model) as record:
            output = model(*args, **kwargs)
            note_final(record, output)
    except EsperError:
        raise
    except Exception as error:
        raise ConfigError(
            "the model does not run on the example",
            why=str(error),
            todo="give example= one input batch as the training loop does: a tensor, a tuple of arguments or a dict",
            code="ESP-2210",
        ) from error
    return record


def note_final(record: Record, output: object) -> None:
    """Write down which tensors a model returned; its pass is over."""
    record.end({id(tensor) for tensor in tensors_in(output)})


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
    modules = dict(_host_modules(model))
    drafts: list[Draft] = []
    cached = decodes_with_cache(model)
    for slot in chosen:
        seen = record.sightings.get(modules[slot.name], Sighting())
        reason = refusal(model, slot, seen, automatic=wanted == "auto") or _centred(model, record, seen)
        layout = slot.layout or (alone(record.layout(seen)) if cached else record.layout(seen))
        if reason is None and layout is None:
            reason = "its layers do not tell where the channels are; name it as esper.Slot(name, layout=...)"
        if reason is not None:
            refusals[slot.name] = reason
        elif layout is not None:
            uses = seen.calls * positions(layout, seen.shape or (), batch_first=record.batch_first)
            drafts.append((seen, slot, modules[slot.name], layout, uses))
    drafts.sort(key=lambda draft: draft[0].order)
    if not drafts and wanted != "auto":
        reasons = "; ".join(f"{name}: {why}" for name, why in refusals.items())
        raise ConfigError(
            "none of the slots can grow", why=reasons, todo="see esper.plan(model, example)", code="ESP-2212"
        )
    return Findings(_staged(model, drafts), refusals)


def check_wanted(model: nn.Module, wanted: Wanted) -> None:
    """Refuse patterns that match nothing, before the model has run.

    Raises:
        ConfigError: With near matches.
    """
    if wanted != "auto":
        _by_hand(model, wanted)


def refusal(model: nn.Module, slot: Slot, seen: Sighting, *, automatic: bool) -> str | None:
    """Return why nothing can grow at a module, or None where something can."""
    skipping = _skips_submodules(model, slot.name)
    if skipping is not None:
        return f"{skipping} skips its submodules on its fast path in eval mode; choose the layer itself"
    if seen.calls == 0:
        return "its forward is never called"
    if seen.shape is None:
        return "its output is not one tensor"
    if seen.dtype is None or not seen.dtype.is_floating_point:
        return f"its output is of type {seen.dtype}"
    if seen.calls > 1 and automatic:
        return f"it runs {seen.calls} times in one pass; name it by hand to grow all uses at once"
    if slot.layout is not None and not fits(slot.layout, seen.shape):
        return f"its output has the shape {seen.shape}, which is not {slot.layout}"
    return obstacle(model.get_submodule(slot.name))


def _centred(model: nn.Module, record: Record, seen: Sighting) -> str | None:
    norm = next((n for n, m in model.named_modules() if m is record.centred.get(seen.output)), None)
    return (
        norm and f"{norm} takes the mean of its channels away, so that a bias grown there would be dead; choose {norm}"
    )


# -- automatic choice ----------------------------------------------------------------------------------------------------


def _automatic(model: nn.Module, record: Record) -> tuple[list[Slot], dict[str, str]]:
    """Prefer repeated blocks, then nested Sequentials, then single layers; never what makes the model's own output."""
    names = _unique_names(model)
    refusals = dict.fromkeys(_shared_names(model), "it is reached by several names")
    last = _last_layer(model, record)

    def usable(name: str) -> bool:
        seen = record.sightings.get(names[name], Sighting())
        own = names[name] is last or seen.output in record.final
        return not own and record.layout(seen) is not None

    blocks = _outermost(name for name in _blocks(model, names) if usable(name))
    if not blocks:
        inner = [n for n, m in names.items() if n and isinstance(m, nn.Sequential) and usable(n)]
        blocks = [
            n for n in inner if last not in set(names[n].modules()) and not any(o.startswith(f"{n}.") for o in inner)
        ]
    if not blocks:
        blocks = [_past_norm(names, record, n) for n, m in names.items() if isinstance(m, LEAVES) and usable(n)]
    for name, module in names.items():
        seen = record.sightings.get(module, Sighting())
        if isinstance(module, LEAVES) and (seen.output in record.final or (module is last and name not in blocks)):
            refusals[name] = "it makes the model's own output"
    return [Slot(name) for name in blocks], refusals


def _past_norm(names: dict[str, nn.Module], record: Record, name: str) -> str:
    """Return the name of the norm that follows a layer at once, where that would take the bias of a graft away again."""
    norm = record.centred.get(record.sightings[names[name]].output)
    return next((n for n, m in names.items() if m is norm), name)


def _last_layer(model: nn.Module, record: Record) -> nn.Module | None:
    """Return the single layer that runs last; squeezed or normalised, its output is still the model's own."""
    seen = [(record.sightings[m].order, m) for m in model.modules() if isinstance(m, LEAVES) and m in record.sightings]
    return max(seen, key=lambda entry: entry[0])[1] if seen else None


def _blocks(model: nn.Module, names: dict[str, nn.Module]) -> list[str]:
    """Return composite modules that are members of a container, or several of one class without such members inside."""
    composite = {
        name: module
        for name, module in names.items()
        if name and any(True for _ in module.children()) and not isinstance(module, CONTAINERS)
    }
    count = Counter(type(module) for module in composite.values())
    members = [name for name in composite if isinstance(_parent(model, name), CONTAINERS)]

    def repeats(name: str) -> bool:
        return count[type(composite[name])] > 1 and not any(member.startswith(f"{name}.") for member in members)

    return [name for name in composite if name in members or repeats(name)]


def _outermost(names: Iterable[str]) -> list[str]:
    chosen = list(names)
    return [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]


def _unique_names(model: nn.Module) -> dict[str, nn.Module]:
    shared = _shared_names(model)
    return {name: module for name, module in _host_modules(model) if name not in shared}


def _shared_names(model: nn.Module) -> set[str]:
    every = list(_host_modules(model))
    count = Counter(id(module) for _, module in every)
    return {name for name, module in every if count[id(module)] > 1}


def _host_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under each of its names, without grafts and what is in them."""
    for name, module in model.named_modules(remove_duplicate=False):
        if CHILD not in name.split("."):
            yield name, module


# -- choice by hand ------------------------------------------------------------------------------------------------------


def _by_hand(model: nn.Module, wanted: Wanted) -> tuple[list[Slot], dict[str, str]]:
    items = [wanted] if isinstance(wanted, (str, Slot, type)) else list(wanted)
    modules = {name: module for name, module in _host_modules(model) if name}
    first: dict[nn.Module, str] = {}
    for name, module in modules.items():
        first.setdefault(module, name)
    chosen: dict[str, Slot] = {}
    for item in items:
        for slot in _matches(item, modules):
            name = first[modules[slot.name]]
            chosen.setdefault(name, replace(slot, name=name))
    return list(chosen.values()), {}


def _matches(item: str | Slot | type[nn.Module], modules: dict[str, nn.Module]) -> list[Slot]:
    if isinstance(item, Slot):
        found = [item] if item.name in modules else []
    elif isinstance(item, type):
        found = [Slot(name) for name, module in modules.items() if isinstance(module, item)]
    elif isinstance(item, str):
        found = [Slot(name) for name in modules if fnmatchcase(name, item)]
    else:
        raise ConfigError(
            f"slots has a {type(item).__name__}",
            todo='give "auto", patterns, module types or esper.Slot(...)',
            code="ESP-2213",
        )
    if not found:
        raise _no_match(item, list(modules))
    return found


def _no_match(item: str | Slot | type[nn.Module], names: list[str]) -> ConfigError:
    text = item.name if isinstance(item, Slot) else getattr(item, "__name__", str(item))
    near = get_close_matches(text, names, n=3, cutoff=0.4)
    hint = f"Did you mean {', '.join(near)}?" if near else f"Modules are {', '.join(names[:8])} ..."
    return ConfigError(f"slot pattern {text!r} matches no module", todo=hint, code="ESP-2211")


# -- shapes --------------------------------------------------------------------------------------------------------------


def _staged(model: nn.Module, drafts: list[Draft]) -> tuple[Place, ...]:
    places: list[Place] = []
    stage, before = -1, None
    for order, (seen, slot, module, layout, uses) in enumerate(drafts):
        shape = seen.shape or ()
        channels, extent = channels_and_extent(layout, shape)
        if before != (layout, channels, extent):
            stage, before = stage + 1, (layout, channels, extent)
        enter, activation = entering(layout, seen.entered, shape), activation_at(module, model)
        place = Place(slot.name, module, layout, channels, extent, order, stage, slot.causal, uses, enter, activation)
        places.append(place)
    return tuple(places)


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


def arguments(example: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return an example as positional and keyword arguments."""
    if isinstance(example, dict):
        return (), example
    return (example, {}) if isinstance(example, tuple) else ((example,), {})
