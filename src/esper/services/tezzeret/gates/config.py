"""Every threshold of validation, with the origin of its value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


def _by_dtype(**values: float) -> Mapping[str, float]:
    return MappingProxyType(values)


@dataclass(frozen=True)
class ValidatorConfig:
    """What a kernel must keep.

    Attributes:
        seed: Seed of every probe input, generic weight and direction.
        formula_tolerance: Error against the numpy reference, both in float64, relative to the largest value. Of 2,500 random
            designs the worst had 7e-14.
        dtype_tolerance: The same, in the kernel's own type. The worst of 6,000 random designs had 4e-5 in float32; the worst
            of 1,000 had 0.06 in float16 and 0.11 in bfloat16.
        slope_tolerance: Error of a gradient against central differences in float64, relative to the slopes and the loss. 99 of
            100 random designs stay below 2e-7 at the first step width; kinks of relu spoil single ones.
        slope_steps: Step widths of the central differences; the best one counts.
        zero_scales: Input scales at which F(x) must be exactly zero at birth.
        live_share: Least share of the layer's largest gradient for every parameter by step 2: 2.5 times what law 2 asks for,
            since inputs other than those of the probe show a share that differs by as much.
        live_rows: Examples in the law 2 probe; enough that a relu is rarely shut for all of them by chance.
        live_step: How far a tensor moves at most in one step of that probe.
        input_scales: Scales at which values and gradients must stay finite.
        half_input_scales: The same for float16, whose largest number is 65,504.
        fit_steps: Steps in which a loss must fall.
        fit_halvings: How often a step that does not lower the loss is halved before the gate gives up.
        training_steps: Steps of AdamW of the training that is timed (specification: 20).
        training_rate: Its learning rate, in float32 small enough for every design of the catalogue and for 283 random ones.
        latency_runs: Timed forward passes, where they fit into ``latency_budget_s``.
        fewest_latency_runs: Timed forward passes in any case.
        latency_budget_s: Time for them.
        latency_floor_ms: What a forward pass on the small probe may take whatever it computes. Kernels of the catalogue take
            under 1 ms; a core shared by ten takes tenfold.
        latency_ms_per_mflop: What it may take on top: 0.1 GFLOP/s, a hundredth of what one core does.
    """

    seed: int = 20_240_229
    formula_tolerance: float = 1e-9
    dtype_tolerance: Mapping[str, float] = field(
        default_factory=lambda: _by_dtype(float64=1e-9, float32=3e-4, float16=0.2, bfloat16=0.5)
    )
    slope_tolerance: float = 1e-5
    slope_steps: tuple[float, ...] = (1e-5, 1e-4, 1e-6, 1e-7)
    zero_scales: tuple[float, ...] = (1.0, 1e2)
    live_share: float = 2.5e-6
    live_rows: int = 64
    live_step: float = 0.05
    input_scales: tuple[float, ...] = (1e-4, 1e-2, 1.0, 1e2, 1e4)
    half_input_scales: tuple[float, ...] = (1e-4, 1e-2, 1.0, 1e2)
    fit_steps: int = 4
    fit_halvings: int = 12
    training_steps: int = 20
    training_rate: float = 1e-3
    latency_runs: int = 30
    fewest_latency_runs: int = 5
    latency_budget_s: float = 0.01
    latency_floor_ms: float = 100.0
    latency_ms_per_mflop: float = 10.0
