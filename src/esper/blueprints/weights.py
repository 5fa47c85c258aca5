"""Initial weights, drawn without touching any global random generator."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from esper.blueprints.dtypes import dtype_named
from esper.errors import ContractError
from esper.ir import BlueprintIR
from esper.ir.spec import TensorSpec


def initial_state(ir: BlueprintIR, *, seed: int, dtype: torch.dtype | str) -> dict[str, Tensor]:
    """Draw the weights that a blueprint is born with.

    Each tensor has a generator of its own, seeded by ``seed`` and the tensor's name, so that a tensor does not depend on what
    else the blueprint has. Numbers are made from raw bits, whose stream numpy guarantees, in float64, and then rounded.

    Args:
        ir: The blueprint.
        seed: Any whole number from 0.
        dtype: Type of the tensors, or its name.

    Returns:
        Parameters and buffers by full name, on the CPU.

    Raises:
        ConfigError: If kernels cannot have the type.
        ContractError: If the seed is negative.

    References:
        U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases is what torch's Linear and Conv start with.
    """
    if seed < 0:
        raise ContractError("seed is negative", why=f"it is {seed}", todo="Give a whole number from 0.")
    kind = dtype_named(dtype)
    return {name: _tensor(spec, name, seed).to(kind) for name, spec in ir.tensors.items()}


def _tensor(spec: TensorSpec, name: str, seed: int) -> Tensor:
    if spec.fan_in is None:
        return torch.full(spec.shape, spec.fill, dtype=torch.float64, device="cpu")
    bits = _generator(name, seed).random_raw(spec.numel)
    unit = (bits >> np.uint64(11)) * 2.0**-53
    return torch.from_numpy(((2.0 * unit - 1.0) / spec.fan_in**0.5).reshape(spec.shape))


def _generator(name: str, seed: int) -> np.random.PCG64:
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.PCG64(np.random.SeedSequence([seed, *words.tolist()]))


def check_state(ir: BlueprintIR, state: Mapping[str, Tensor]) -> torch.dtype:
    """Refuse tensors that are not a blueprint's.

    Args:
        ir: The blueprint.
        state: Its tensors.

    Returns:
        The one type that all tensors have; float32 where there is none.

    Raises:
        ContractError: If a name, shape or type differs.
    """
    if state.keys() != ir.tensors.keys():
        odd = sorted(state.keys() ^ ir.tensors.keys())
        raise ContractError("tensors do not belong to the blueprint", why=f"missing or extra: {', '.join(odd[:5])}")
    for name, spec in ir.tensors.items():
        if tuple(state[name].shape) != spec.shape:
            raise ContractError(f"tensor {name!r} has shape {tuple(state[name].shape)}", why=f"{spec.shape} is needed")
    kinds = {tensor.dtype for tensor in state.values()} or {torch.float32}
    if len(kinds) != 1:
        raise ContractError("tensors differ in type", why=f"found {', '.join(sorted(map(str, kinds)))}")
    return dtype_named(kinds.pop())
