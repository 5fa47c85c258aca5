"""A grown model in a folder of three files, and back: for other people, other programs, other runs."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from esper.errors import ConfigError, StoreUnavailable
from esper.kasmina import GraftEntry, MorphableModel, Seed, placement_of, restore_topology, topology
from esper.kasmina.morph import base_of
from esper.kasmina.placement import CHILD
from esper.kasmina.wrapping import unwrap, wrap
from esper.runtime.files import own_folder, sync_folder
from esper.services.tolaria.checkpoint.layout import Layout, layout_of, memory_of
from esper.services.tolaria.checkpoint.sealed import damaged, read_sealed, sealed, verify
from esper.services.tolaria.checkpoint.slots import describe_slots, restore_slots, wanted_slots
from esper.services.tolaria.checkpoint.tensors import Part, Written, read_tensors, write_chunks, write_tensors

CONFIG, GROWTH, WEIGHTS = "config.json", "growth.json", "model.safetensors"
FORMAT, GROWTH_FORMAT, VERSION = "esper-pretrained", "esper-growth", 1


def save_pretrained(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a wrapped model, grown or not, attached or not: weights, grafts, slots.

    Args:
        model: Wrapped by ``esper.wrap``.
        folder: Where; empty, not there yet, or one that this function wrote, which is then replaced.

    Returns:
        The folder.

    Raises:
        ConfigError: If the model is not wrapped, has state that is no tensor, or the folder holds something else.
        StoreUnavailable: If the disk is full or fails; the folder is left as it was.
    """
    placement, path = placement_of(model), Path(folder).absolute()
    parts, layouts, aliases = _taken_apart(model)
    growth = {
        "grafts": [asdict(entry) for entry in topology(model)],
        "seeds": [seed.to_dict() for seed in placement.seeds.values()],
        **describe_slots(model, placement),
        "tensors": {name: layout.to_json() for name, layout in layouts.items()},
        "aliases": aliases,
    }
    _check_free(path)
    own_folder(path.parent, argument="folder")
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        aside.mkdir()
        _write(aside, parts, growth, base_of(model))
        _replace(path, aside)
    except OSError as error:
        raise StoreUnavailable(
            f"{path} cannot be written", why=str(error), todo="free space", code="ESP-4220"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def from_pretrained(folder: str | os.PathLike[str], base: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return a wrapped model as it was saved: slots, grafts, ties, types, weights; it may be attached again.

    Args:
        folder: What ``save_pretrained`` wrote.
        base: The host, not wrapped, with any weights; or a function that makes it.

    Returns:
        The host, wrapped and grown, in the mode and on the device that it had.

    Raises:
        ContractError: If a file is missing, damaged, or of a version that is not known; nothing is parsed before its digest
            was verified.
        ConfigError: If the host is not the one that was saved; it is left as it was.
    """
    growth, tensors = _read(Path(folder))
    model = base if isinstance(base, nn.Module) else base()
    if not isinstance(model, nn.Module) or isinstance(model, MorphableModel):
        raise ConfigError(
            f"base gives a {type(model).__name__}", todo="give a torch module that is not wrapped", code="ESP-2191"
        )
    _check_host(model, tensors, growth["aliases"])
    wrap(model, wanted_slots(growth))
    try:
        restore_slots(model, growth)
        _load(model, {name: tensor for name, tensor in tensors.items() if not _grown(name)})
        _tie(model, growth["aliases"])
        restore_topology(model, tuple(GraftEntry(**entry) for entry in growth["grafts"]))
        _load(model, {name: tensor for name, tensor in tensors.items() if _grown(name)})
        seeds = [Seed.from_dict(seed) for seed in growth["seeds"]]
        placement_of(model).seeds.update({(seed.slot, seed.seed_idx): seed for seed in seeds})
    except BaseException:
        unwrap(model)
        raise
    return model


def _taken_apart(model: nn.Module) -> tuple[list[Part], dict[str, Layout], dict[str, str]]:
    """Return what is written, how each tensor lay in memory, and which names share one with another."""
    parts: list[Part] = []
    layouts: dict[str, Layout] = {}
    aliases: dict[str, str] = {}
    known: dict[object, str] = {}
    for name, tensor in model.state_dict().items():
        layout = layout_of(tensor) if isinstance(tensor, Tensor) else None
        if layout is None:
            raise ConfigError(
                f"{name} cannot be stored",
                why=f"this {type(tensor).__name__} has no plain memory",
                todo="gather or densify it first, and keep no extra state in modules",
                code="ESP-2180",
            )
        first = known.setdefault((tensor.data_ptr(), layout) if tensor.numel() else name, name)
        if first != name:
            aliases[name] = first
            continue
        plain = Layout(layout.dtype, layout.shape)
        parts.append(Part(name, plain, memory_of(tensor, plain)))
        layouts[name] = layout
    return parts, layouts, aliases


def _write(folder: Path, parts: list[Part], growth: dict[str, Any], host: type[nn.Module]) -> None:
    weights = write_tensors(folder / WEIGHTS, parts)
    table = write_chunks(folder / GROWTH, [sealed(GROWTH_FORMAT, VERSION, growth)])
    config = {
        "host": f"{host.__module__}.{host.__qualname__}",
        "parameters": sum(part.memory.numel() // part.layout.dtype.itemsize for part in parts),
        "files": {WEIGHTS: asdict(weights), GROWTH: asdict(table)},
    }
    write_chunks(folder / CONFIG, [sealed(FORMAT, VERSION, config)])
    sync_folder(folder)


def _replace(path: Path, aside: Path) -> None:
    """Put the new folder where the old one is; between two renames the old one lies beside it."""
    old = aside.with_suffix(".old")
    if path.exists():
        path.rename(old)
    aside.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_free(path: Path) -> None:
    if not path.exists() or (path.is_dir() and ((path / GROWTH).exists() or not any(path.iterdir()))):
        return
    raise ConfigError(
        f"{path} holds something else",
        why="only a folder that save_pretrained wrote, or an empty one, is replaced",
        todo="choose another folder",
        code="ESP-2190",
    )


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the growth table and the tensors as they lay in memory, after every file was verified."""
    config = read_sealed(folder / CONFIG, FORMAT, VERSION)
    try:
        files = {name: Written(**file) for name, file in config["files"].items()}
        for name in (GROWTH, WEIGHTS):
            verify(folder / name, files.get(name))
        growth = read_sealed(folder / GROWTH, GROWTH_FORMAT, VERSION)
        layouts = {name: Layout.from_json(layout) for name, layout in growth["tensors"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise damaged(folder, f"its entries are not those of version {VERSION}: {wrong}") from wrong
    wanted = [(name, Layout(layout.dtype, layout.shape)) for name, layout in layouts.items()]
    stored = zip(layouts.items(), read_tensors(folder / WEIGHTS, wanted), strict=True)
    return growth, {name: _strided(tensor, layout) for (name, layout), tensor in stored}


def _strided(tensor: Tensor, layout: Layout) -> Tensor:
    if layout.stride is None:
        return tensor
    return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype).copy_(tensor)


def _grown(name: str) -> bool:
    return f"{CHILD}." in name


def _check_host(model: nn.Module, tensors: dict[str, Tensor], aliases: dict[str, str]) -> None:
    """Refuse a host with other names or shapes, or with ties that the saved one did not have."""
    saved = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not _grown(name)}
    saved.update({alias: saved[first] for alias, first in aliases.items() if first in saved})
    here = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    odd = [
        *(f"{name} is missing here" for name in sorted(saved.keys() - here.keys())),
        *(f"{name} was not saved" for name in sorted(here.keys() - saved.keys())),
        *(
            f"{name} has shape {tuple(here[name].shape)}, saved is {saved[name]}"
            for name in sorted(saved.keys() & here.keys())
            if tuple(here[name].shape) != saved[name]
        ),
    ]
    first: dict[object, str] = {}
    for name, tensor in here.items():
        other = first.setdefault((tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else name, name)
        if aliases.get(name, name) != aliases.get(other, other):
            odd.append(f"{name} and {other} are tied here, and were not")
    if odd:
        more = f", and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ConfigError(
            "the host is not the one that was saved",
            why="; ".join(odd[:3]) + more,
            todo="let base make the model as it was before it was wrapped and grown",
            code="ESP-2192",
        )


@torch.no_grad()
def _load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give every parameter and buffer the saved values, type and strides; parameters stay the same objects."""
    here = model.state_dict(keep_vars=True)
    for name, saved in tensors.items():
        here[name].data = saved.to(here[name].device)


def _tie(model: nn.Module, aliases: dict[str, str]) -> None:
    here = model.state_dict(keep_vars=True)
    for alias, first in aliases.items():
        if here[alias] is here[first]:
            continue
        owner, _, leaf = alias.rpartition(".")
        module = model.get_submodule(owner)
        (module._parameters if leaf in module._parameters else module._buffers)[leaf] = here[first]
