"""Looks at a kernel again that the forge let pass, with inputs, weights and steps of its own and none of the forge's gates."""

import numpy as np
import torch
from torch import Tensor

from esper.blueprints import KernelModule, unpack_kernel
from esper.blueprints.kernel import Kernel
from esper.ir import BlueprintIR, Reads, digest_of, liveness, ops
from esper.ir.liveness import STEPS
from esper.reference import evaluate
from esper.testing.blueprints import SHORTEST_EXTENT, Array, random_input

FORMULA_TOLERANCE = 1e-8
"""Largest difference to the reference in float64, relative to the largest value; the law asks for 1e-6 in float32."""
LIVE_SHARE = 1e-6
"""Law 2: by step 2 every tensor has a gradient above so much of the layer's largest."""
DRAWS = 4
"""A relu may be shut for one draw of inputs by chance."""
_MOVE = 0.02


def faults_of(kernel_id: str, data: bytes, *, seed: int) -> list[str]:
    """Return what is wrong with a kernel.

    Args:
        kernel_id: Content address that its bytes must have.
        data: Its bytes.
        seed: Seed of inputs and weights.
    """
    if digest_of(data) != kernel_id:
        return ["its bytes have another digest"]
    kernel = unpack_kernel(data)
    return [*_wrong_values(kernel, seed), *_not_neutral(kernel, seed), *_not_alive(kernel, seed)]


def _extent(ir: BlueprintIR) -> int:
    least = (ops.get(node.op).min_extent(use) for node, use in zip(ir.nodes, ir.uses, strict=True))
    return max(SHORTEST_EXTENT, *least)


def _weights(ir: BlueprintIR, seed: int) -> dict[str, Array]:
    """Return generic weights that keep values at an ordinary size."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, spec in ir.tensors.items():
        spread = rng.normal(0.0, 1.0 / np.sqrt(max(1, spec.numel // spec.shape[0])), spec.shape)
        weights[name] = 1.0 + 0.1 * np.abs(spread) if name.endswith("running_var") else spec.fill + spread
    return weights


def _wrong_values(kernel: Kernel, seed: int) -> list[str]:
    ir, weights = kernel.ir, _weights(kernel.ir, seed)
    module = KernelModule(ir, {name: torch.from_numpy(value) for name, value in weights.items()})
    wrong = []
    for training in (True, False):  # a training pass moves the statistics of batch norm, so it is looked at first
        x = random_input(ir, batch=5, extent=_extent(ir), seed=seed + int(training))
        fresh = KernelModule(ir, {name: torch.from_numpy(value.copy()) for name, value in weights.items()})
        with torch.no_grad(), np.errstate(all="ignore"):
            found = (fresh if training else module).train(training)(torch.from_numpy(x)).numpy()
            expected = evaluate(ir, weights, x, training=training)
            size = float(np.abs(expected).max())
            error = float(np.abs(found - expected).max()) / max(size, 1e-30)
        if not error <= FORMULA_TOLERANCE:
            wrong.append(f"differs from the reference by {error:.3g} of {size:.3g}, training {training}")
    return wrong


def _newborn(kernel: Kernel) -> KernelModule:
    return KernelModule(kernel.ir, {name: tensor.clone() for name, tensor in kernel.state.items()})


def _input(kernel: Kernel, seed: int, batch: int = 24) -> Tensor:
    x = torch.from_numpy(random_input(kernel.ir, batch=batch, extent=_extent(kernel.ir), seed=seed))
    scales = torch.logspace(-0.6, 0.6, batch, dtype=x.dtype).reshape(-1, *(1,) * (x.dim() - 1))
    return (x * scales).to(next(iter(kernel.state.values())).dtype if kernel.state else torch.float32)


def _not_neutral(kernel: Kernel, seed: int) -> list[str]:
    with torch.no_grad():
        sizes = [
            float(_newborn(kernel).train(training)(scale * _input(kernel, seed)).abs().max())
            for training in (True, False)
            for scale in (1.0, 100.0)
        ]
    return [f"F(x) is {size:.3g} at birth" for size in sizes if size != 0.0][:1]


def _beside(added: Tensor, seed: int) -> Tensor:
    """Return what a module gives out to which a graft adds that reads what enters it."""
    return torch.randn(added.shape, generator=torch.Generator().manual_seed(seed)).to(added.dtype)


def _not_alive(kernel: Kernel, seed: int) -> list[str]:
    """Train a few steps in which every tensor moves equally far."""
    peaks: dict[str, float] = {}
    first: dict[str, float] = {}
    for draw in range(DRAWS):
        module = _newborn(kernel).train()
        for step in range(STEPS):
            module.zero_grad()
            x = _input(kernel, seed + 100 * draw + step)
            added = module(x)
            host = x if kernel.ir.reads is Reads.OUTPUT else _beside(added, seed + step)
            (host + added - host.roll(1, 0) - 0.3).double().square().sum().backward()
            sizes = {
                name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
                for name, parameter in module.named_parameters()
            }
            top = max(sizes.values(), default=0.0) or 1.0
            peaks = {name: max(peaks.get(name, 0.0), size / top) for name, size in sizes.items()}
            if step == 0:
                first = {name: max(first.get(name, 0.0), size) for name, size in sizes.items()}
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    if parameter.grad is not None and sizes[name]:
                        parameter.sub_(parameter.grad * (_MOVE / sizes[name]))
    deaf = [name for name in liveness(kernel.ir).zero_factors if not first[name] > 0.0]
    dead = [name for name, peak in peaks.items() if not peak > LIVE_SHARE]
    return [f"zero factor {name} has no gradient at step 0" for name in deaf] + [f"{name} is dead" for name in dead]
