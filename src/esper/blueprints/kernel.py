"""Kernels as bytes: canonical IR and weights in one safetensors blob, named by its digest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from esper.blueprints import OP_LIBRARY
from esper.blueprints.dtypes import DTYPES, NAMES
from esper.blueprints.module import KernelModule
from esper.blueprints.weights import check_state
from esper.errors import ContractError, KernelRejected
from esper.ir import BlueprintIR, digest_of

# One key only: safetensors writes its metadata in no certain order, and the bytes must be the same every time.
_KEY = "esper"
_FORMAT = "esper-kernel-1"
_FIELDS = frozenset({"format", "ir", "seed", "dtype", "op_library"})
_SAFETENSORS_DTYPES = {"F32": "float32", "F64": "float64", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Kernel:
    """A compiled blueprint, read but not yet a module.

    Attributes:
        ir: The blueprint; called ``unnamed``, as bytes depend on what is computed alone.
        state: Its tensors.
        seed: Seed of its initial weights.
        dtype: Name of the type of its tensors.
        op_library: Version of the operations it was made for.
    """

    ir: BlueprintIR
    state: Mapping[str, Tensor]
    seed: int
    dtype: str
    op_library: int


def pack_kernel(ir: BlueprintIR, state: Mapping[str, Tensor], *, seed: int) -> bytes:
    """Write a kernel.

    Args:
        ir: The blueprint.
        state: Its tensors, all of one type.
        seed: Seed of its initial weights, for the record.

    Returns:
        One safetensors blob; equal arguments give equal bytes.

    Raises:
        ContractError: If the tensors are not the blueprint's.
    """
    dtype = check_state(ir, state)
    record = {
        "format": _FORMAT,
        "ir": json.loads(ir.canonical()),
        "seed": seed,
        "dtype": NAMES[dtype],
        "op_library": OP_LIBRARY,
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    tensors = {name: state[name].detach().to("cpu").contiguous() for name in ir.tensors}
    return save(tensors, metadata={_KEY: text})


def unpack_kernel(data: bytes) -> Kernel:
    """Read a kernel and check every part of it.

    Args:
        data: What `pack_kernel` wrote. Check its digest first, as `load_kernel` does.

    Returns:
        The kernel, with tensors of its own.

    Raises:
        KernelRejected: If the bytes are not a kernel, or one for other operations, or a weight is not finite.
        InvalidBlueprint: If the blueprint in it breaks a rule.
    """
    record = _record(data)
    ir = BlueprintIR.from_json(record["ir"])
    state = _state(data)
    _check(ir, state, record)
    return Kernel(ir, state, int(str(record["seed"])), str(record["dtype"]), OP_LIBRARY)


def load_kernel(data: bytes, *, digest: str) -> KernelModule:
    """Build the module of a kernel, after its digest was verified.

    Args:
        data: The kernel's bytes.
        digest: Its content address.

    Returns:
        A trainable module, in training mode, on the CPU.

    Raises:
        KernelRejected: If the bytes have another digest (nothing is parsed then), or are not a sound kernel.
        InvalidBlueprint: If the blueprint in it breaks a rule.
    """
    found = digest_of(data)
    if found != digest:
        raise KernelRejected(
            f"kernel {digest[:19]} was not loaded",
            why=f"its bytes have the digest {found[:19]}",
            todo="Fetch it again; if that does not help, compile it again.",
        )
    kernel = unpack_kernel(data)
    return KernelModule(kernel.ir, kernel.state)


def _rejected(why: str) -> KernelRejected:
    return KernelRejected("not a kernel", why=why, todo="Compile the blueprint again.")


def _record(data: bytes) -> dict[str, object]:
    """Return the metadata record; the header's own rules are checked by safetensors afterwards."""
    try:
        size = int.from_bytes(data[:8], "little")
        if not 2 <= size <= len(data) - 8:
            raise _rejected("its header does not lie within it")
        record = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_KEY])
    except (ValueError, KeyError, TypeError, RecursionError) as wrong:
        raise _rejected("it has no record of an Esper kernel") from wrong
    if not isinstance(record, dict) or record.keys() != _FIELDS or record["format"] != _FORMAT:
        raise _rejected("its record is of another format")
    if record["op_library"] != OP_LIBRARY:
        raise _rejected(f"it was made for operations of version {record['op_library']}, these are {OP_LIBRARY}")
    return record


def _state(data: bytes) -> dict[str, Tensor]:
    try:
        parts = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as wrong:
        raise _rejected(str(wrong)) from wrong
    state: dict[str, Tensor] = {}
    for name, part in parts:
        kind = _SAFETENSORS_DTYPES.get(part["dtype"])
        if kind is None or not part["data"]:
            raise _rejected(f"tensor {name!r} is empty or of type {part['dtype']}")
        # The clone lies in torch's own memory, aligned, and is not shared with the others.
        state[name] = torch.frombuffer(part["data"], dtype=DTYPES[kind]).reshape(part["shape"]).clone()
    return state


def _check(ir: BlueprintIR, state: dict[str, Tensor], record: dict[str, object]) -> None:
    try:
        dtype = check_state(ir, state)
    except ContractError as wrong:
        raise _rejected(f"{wrong.what}: {wrong.why}") from wrong
    if record["dtype"] != NAMES[dtype]:
        raise _rejected(f"its record says {record['dtype']}, its tensors are {NAMES[dtype]}")
    seed = record["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise _rejected("its seed is not a whole number from 0")
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _rejected(f"tensor {name!r} has values that are not finite")
