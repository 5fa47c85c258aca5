"""Tensors in a safetensors file, written from where they lie and hashed meanwhile."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from esper.errors import ContractError
from esper.services.tolaria.checkpoint.layout import STORED, Layout, tensor_from

SAMPLE = 64
"""Bytes at either end that are compared first where two tensors may be equal."""


@dataclass(frozen=True)
class Written:
    """One file as it was written.

    Attributes:
        digest: SHA-256 of its content.
        num_bytes: Its size.
    """

    digest: str
    num_bytes: int


@dataclass(frozen=True)
class Part:
    """One tensor for the file.

    Attributes:
        name: Its name there.
        layout: Its type and shape.
        memory: Its bytes, on the CPU.
    """

    name: str
    layout: Layout
    memory: Tensor


def distinct(parts: Iterable[Part]) -> tuple[list[Part], list[str]]:
    """Leave out tensors whose bytes another one has already, such as those that did not change since a snapshot.

    Returns:
        The parts that are written, and for every part that was given the name under which its bytes are found.
    """
    kept: list[Part] = []
    names: list[str] = []
    alike: dict[object, list[Part]] = {}
    for part in parts:
        candidates = alike.setdefault(_sample(part), [])
        equal = next((other for other in candidates if torch.equal(other.memory, part.memory)), None)
        if equal is None:
            candidates.append(part)
            kept.append(part)
        names.append(part.name if equal is None else equal.name)
    return kept, names


def write_tensors(path: Path, parts: list[Part]) -> Written:
    """Write a safetensors file and force it to the disk; its digest is computed beside the writing.

    Raises:
        OSError: If the disk is full or fails.
    """
    ordered = sorted(parts, key=lambda part: -STORED[part.layout.dtype][1].itemsize)  # keeps every tensor aligned
    chunks = [memoryview(_header(ordered)), *(part.memory.numpy().data for part in ordered if part.memory.numel())]
    return write_chunks(path, chunks)


def write_chunks(path: Path, chunks: Sequence[bytes | memoryview]) -> Written:
    """Write a file in pieces, force it to the disk, and return its digest."""
    with ThreadPoolExecutor(1, thread_name_prefix="esper-digest") as pool:
        digest = pool.submit(_digest, chunks)
        with path.open("xb", buffering=0) as file:
            for chunk in chunks:
                _write_all(file.fileno(), memoryview(chunk))
            os.fsync(file.fileno())
        return Written(digest.result(), sum(len(chunk) for chunk in chunks))


def read_tensors(path: Path, wanted: list[tuple[str, Layout]]) -> list[Tensor]:
    """Read tensors from a file whose digest was verified; each has memory of its own.

    Args:
        path: The file.
        wanted: Name and layout of each; a name may come more than once.

    Raises:
        ContractError: If the file is no safetensors file, or does not hold them.
    """
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            return [tensor_from(file.get_tensor(name).clone(), layout) for name, layout in wanted]
    except (safetensors.SafetensorError, ValueError) as wrong:
        raise ContractError(f"{path} does not hold the tensors of its structure", why=str(wrong)) from wrong


def _digest(chunks: Sequence[bytes | memoryview]) -> str:
    total = hashlib.sha256()
    for chunk in chunks:
        total.update(chunk)
    return f"sha256:{total.hexdigest()}"


def _write_all(handle: int, left: memoryview) -> None:
    while left:
        left = left[os.write(handle, left) :]


def _header(parts: list[Part]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for part in parts:
        end = offset + part.layout.num_bytes
        kind, shape = STORED[part.layout.dtype][0], list(part.layout.stored_shape)
        entries[part.name] = {"dtype": kind, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _sample(part: Part) -> object:
    ends = torch.cat([part.memory[:SAMPLE], part.memory[-SAMPLE:]]).numpy().tobytes()
    return part.layout.dtype, part.layout.stored_shape, ends
