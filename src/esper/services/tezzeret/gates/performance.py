"""How fast is the kernel, and what does training keep in memory for it?"""

import time

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from esper.blueprints.module import KernelModule
from esper.contracts.kernel import GateResult
from esper.ir import cost
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.gates.verdict import Findings


def performance(trial: Trial) -> GateResult:
    """Time forward passes of eight small examples on the threads that torch has (one in a child)."""
    found = Findings()
    probe = trial.probes.batch
    newborn, x = trial.newborn().eval(), trial.input(probe)
    times = sorted(_timed(newborn, x, trial))
    median_s, slow_s = times[len(times) // 2], times[min(len(times) - 1, int(0.95 * len(times)))]
    mflops = probe.batch * cost(trial.ir, probe.extent).flops / 1e6
    allowed_ms = trial.config.latency_floor_ms + trial.config.latency_ms_per_mflop * mflops
    found.expect(
        median_s * 1e3 <= allowed_ms,
        f"takes {median_s * 1e3:.0f} ms for {probe.batch} examples of {mflops / probe.batch:.2g} MFLOPs; "
        f"{allowed_ms:.0f} ms are allowed",
    )
    found.measure("latency_p50_ms", median_s * 1e3)
    found.measure("latency_p95_ms", slow_s * 1e3)
    found.measure("latency_runs", len(times))
    found.measure("throughput_per_s", probe.batch / max(median_s, 1e-9))
    found.measure("weights_mb", sum(tensor.nbytes for tensor in trial.kernel.state.values()) / 2**20)
    found.measure("saved_for_backward_mb_per_example", _saved_bytes(newborn, x) / probe.batch / 2**20)
    return found.result()


def _timed(newborn: KernelModule, x: Tensor, trial: Trial) -> list[float]:
    times: list[float] = []
    config = trial.config
    with torch.no_grad():
        newborn(x)
        while len(times) < config.latency_runs:
            if len(times) >= config.fewest_latency_runs and sum(times) > config.latency_budget_s:
                break
            began = time.perf_counter()
            newborn(x)
            times.append(time.perf_counter() - began)
    return times


def _saved_bytes(module: KernelModule, x: Tensor) -> int:
    """Return the bytes that a training pass keeps for its backward pass, the weights not counted."""
    own = {parameter.data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def noted(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = max(kept.get(tensor.data_ptr(), 0), tensor.nbytes)
        return tensor

    with saved_tensors_hooks(noted, lambda tensor: tensor):
        module.train()(x)
    return sum(kept.values())
