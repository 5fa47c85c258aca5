"""How fast is the kernel, does it train, and what does training keep in memory for it?"""

import math
import statistics
import time

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from esper.blueprints.module import KernelModule
from esper.contracts.kernel import GateResult
from esper.ir import cost
from esper.services.tezzeret.gates.trial import Trial, wish
from esper.services.tezzeret.gates.verdict import Findings


def performance(trial: Trial) -> GateResult:
    """Time forward passes and training steps of eight small examples on the threads that torch has (one in a child)."""
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
    weights_mb = sum(tensor.nbytes for tensor in trial.kernel.state.values()) / 2**20
    saved_mb = _saved_bytes(newborn, x) / probe.batch / 2**20
    found.measure("weights_mb", weights_mb)
    found.measure("saved_for_backward_mb_per_example", saved_mb)
    found.measure("memory_mb", weights_mb + saved_mb)
    _expect_training(trial, found)
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


def _expect_training(trial: Trial, found: Findings) -> None:
    """Train as hosts do, with an optimizer of torch: the loss must stay finite and fall."""
    # Hosts in half precision keep their weights in float32: what AdamW adds to a divisor is nothing in float16.
    dtype = torch.float32 if trial.dtype is torch.float16 else trial.dtype
    newborn, x = trial.newborn().to(dtype).train(), trial.input(trial.probes.batch, salt=7).to(dtype)
    target = wish(trial, x)
    parameters = list(newborn.parameters())
    if not parameters:
        return
    optimizer = torch.optim.AdamW(parameters, lr=trial.config.training_rate, weight_decay=0.0)
    losses, times = list[float](), list[float]()
    for _ in range(trial.config.training_steps):
        began = time.perf_counter()
        optimizer.zero_grad()
        loss = (newborn(x).float() - target).square().mean()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
        losses.append(float(loss.detach()))
    found.expect(all(map(math.isfinite, losses)), f"the loss is not finite within {len(losses)} steps of AdamW")
    found.expect(min(losses) < losses[0], f"{len(losses)} steps of AdamW never lower the loss of {losses[0]:.6g}")
    found.measure("training_step_p50_ms", statistics.median(times) * 1e3)
    found.measure("loss_ratio_after_training", losses[-1] / losses[0] if losses[0] else 1.0)


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
