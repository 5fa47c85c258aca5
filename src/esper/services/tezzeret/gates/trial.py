"""A stored kernel on the test bench, with the inputs and weights that try it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper.blueprints.dtypes import dtype_named
from esper.blueprints.kernel import Kernel
from esper.blueprints.module import KernelModule
from esper.ir import BlueprintIR
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.probes import Probe, Probes, probes_of

Array = NDArray[np.float64]

_GENERIC_SPREAD = 0.2
"""Filled tensors (biases, norm weights) are moved this far, so that no formula is tested at a special point."""


@dataclass(frozen=True)
class Trial:
    """What every gate looks at.

    Attributes:
        kernel: What the stored bytes say.
        config: Thresholds.
    """

    kernel: Kernel
    config: ValidatorConfig
    _drawn: dict[tuple[Probe, int], Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def ir(self) -> BlueprintIR:
        """The blueprint in the bytes."""
        return self.kernel.ir

    @cached_property
    def dtype(self) -> torch.dtype:
        """Type of the stored weights."""
        return dtype_named(self.kernel.dtype)

    @cached_property
    def probes(self) -> Probes:
        """Shapes of the inputs."""
        return probes_of(self.ir)

    @cached_property
    def is_stateless(self) -> bool:
        """Whether training and evaluation must compute the same: it has no buffers and no foreign operation."""
        return self.ir.is_trusted and all(tensor.trainable for tensor in self.ir.tensors.values())

    @cached_property
    def grown(self) -> dict[str, Tensor]:
        """Generic weights in the kernel's own type: the drawn ones as stored, the filled ones replaced.

        A newborn's F is exactly zero, so a comparison at the stored weights alone could not fail.
        """
        rng = np.random.default_rng(self.config.seed)
        state: dict[str, Tensor] = {}
        for name, spec in self.ir.tensors.items():
            if spec.fan_in is not None:
                state[name] = self.kernel.state[name]
                continue
            spread = _GENERIC_SPREAD if len(spec.shape) == 1 else (spec.numel / spec.shape[0]) ** -0.5
            moved = spec.fill + spread * rng.uniform(-1.0, 1.0, spec.shape)
            state[name] = torch.from_numpy(moved).to(self.dtype)
        return state

    @cached_property
    def grown_arrays(self) -> dict[str, Array]:
        """The same, for the reference."""
        return arrays(self.grown)

    def newborn(self) -> KernelModule:
        """Build the kernel with its stored weights; gates may train it."""
        return KernelModule(self.ir, {name: tensor.clone() for name, tensor in self.kernel.state.items()})

    def grown_module(self, dtype: torch.dtype) -> KernelModule:
        """Build the kernel with generic weights."""
        return KernelModule(self.ir, {name: tensor.to(dtype, copy=True) for name, tensor in self.grown.items()})

    def input(self, probe: Probe, *, scale: float = 1.0, salt: int = 0) -> Tensor:
        """Return a normal input in the kernel's own type; another salt gives other numbers."""
        drawn = self._drawn.get((probe, salt))
        if drawn is None:
            drawn = np.random.default_rng((self.config.seed, salt)).standard_normal(probe.shape(self.ir))
            self._drawn[probe, salt] = drawn
        return torch.from_numpy(scale * drawn).to(self.dtype)

    def leaving(self, x: Tensor) -> Tensor:
        """Return what a slot's module would hand on where ``x`` is what the kernel reads.

        It is x itself; where F(x) has other channels than x, those of x over and over, or the first of them.
        """
        axis = 1 if self.ir.layout.is_channels_first else -1
        chosen = torch.arange(self.ir.out_channels) % self.ir.channels
        return x if self.ir.out_channels == self.ir.channels else x.index_select(axis, chosen)


def arrays(state: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return tensors as float64 arrays."""
    return {name: tensor.detach().to(torch.float64).numpy() for name, tensor in state.items()}


def wish(trial: Trial, x: Tensor) -> Tensor:
    """Return what a kernel is trained to add where it reads ``x``, in float32."""
    h = trial.leaving(x).float()
    return (torch.tanh(3.0 * h) - h).detach()


def largest(values: Tensor) -> float:
    """Return the largest magnitude; infinity where something is not a number."""
    if values.numel() == 0:
        return 0.0
    found = float(values.detach().abs().max())
    return found if found == found else float("inf")
