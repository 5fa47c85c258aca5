"""One checkpoint on disk: written aside and renamed, read after its digests were verified."""

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from esper.errors import ContractError
from esper.runtime.files import sync_folder
from esper.services.tolaria.checkpoint.layout import Layout
from esper.services.tolaria.checkpoint.manifest import FILE, Manifest, read_manifest
from esper.services.tolaria.checkpoint.packing import unpack
from esper.services.tolaria.checkpoint.sealed import damaged, verify
from esper.services.tolaria.checkpoint.tensors import Part, distinct, read_tensors, write_chunks, write_tensors

ASIDE = ".writing-"
LEAVING = ".removing-"
STRUCTURE, TENSORS = "structure.json", "tensors.safetensors"
MOST_STRUCTURE_BYTES = 2**30
"""Parsing takes about ten times as much memory; a training has some megabytes."""


def write_checkpoint(path: Path, tree: object, parts: list[Part], manifest: Manifest) -> None:
    """Write a checkpoint so that a crash at any moment leaves it whole or not there.

    Args:
        path: Its folder; must not exist, its parent must.
        tree: The containers.
        parts: The tensors, in the order of their indices in the tree.
        manifest: What is known of it; the files are added here.

    Raises:
        OSError: If the disk is full or fails; nothing is left behind then.
    """
    aside = path.with_name(f"{ASIDE}{uuid4().hex[:12]}")
    try:
        aside.mkdir()
        kept, stored = distinct(parts)
        files = {TENSORS: write_tensors(aside / TENSORS, kept)}
        files[STRUCTURE] = write_chunks(aside / STRUCTURE, [_structure(tree, parts, stored)])
        write_chunks(aside / FILE, [replace(manifest, files=files).to_bytes()])
        sync_folder(aside)
        aside.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state in one checkpoint, to the bit, tensors on the CPU; nothing in it is run.

    Args:
        path: Its folder.

    Raises:
        ContractError: If a file is missing or damaged, or of a version that is not known; it says which.
    """
    folder = Path(path)
    files = read_manifest(folder).files
    verify(folder / STRUCTURE, files.get(STRUCTURE), most_bytes=MOST_STRUCTURE_BYTES)
    verify(folder / TENSORS, files.get(TENSORS))
    try:
        content = json.loads((folder / STRUCTURE).read_bytes())
        layouts = [(str(entry["stored"]), Layout.from_json(entry)) for entry in content["tensors"]]
        state: dict[str, Any] = unpack(content["state"], read_tensors(folder / TENSORS, layouts))
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        raise damaged(folder / STRUCTURE, f"it is no structure: {type(wrong).__name__}: {wrong}") from wrong
    except ContractError as wrong:
        raise damaged(folder, f"{wrong.what}: {wrong.why}") from wrong
    return state


def remove_checkpoint(path: Path) -> None:
    """Take a checkpoint away; it is there whole or not at all while that lasts."""
    leaving = path.with_name(f"{LEAVING}{uuid4().hex[:12]}")
    with suppress(FileNotFoundError):  # another process took it
        path.rename(leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def sweep(folder: Path) -> int:
    """Take away what a crash left half written or half removed; nobody may be writing.

    Returns:
        How many there were.
    """
    left = [*folder.glob(f"{ASIDE}*"), *folder.glob(f"{LEAVING}*")]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    return len(left)


def _structure(tree: object, parts: Iterable[Part], stored: list[str]) -> bytes:
    entries = [{"stored": name, **part.layout.to_json()} for part, name in zip(parts, stored, strict=True)]
    return json.dumps({"state": tree, "tensors": entries}, separators=(",", ":"), allow_nan=False).encode()
