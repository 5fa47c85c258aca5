"""Is the kernel what it says it is, and does it leave everything else alone?"""

import torch

from esper.contracts.kernel import GateResult
from esper.ir import cost
from esper.services.tezzeret.gates.flops import counted_flops
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.gates.verdict import Findings


def safety(trial: Trial) -> GateResult:
    """Measure the cost against the static one, and look for side effects."""
    found = Findings()
    _expect_declared_cost(trial, found)
    _expect_no_side_effects(trial, found)
    found.measure("trusted", float(trial.ir.is_trusted))
    return found.result()


def _expect_declared_cost(trial: Trial, found: Findings) -> None:
    probe = trial.probes.odd
    declared = cost(trial.ir, probe.extent)
    newborn = trial.newborn().eval()
    params = sum(parameter.numel() for parameter in newborn.parameters())
    flops = counted_flops(newborn, trial.input(probe))
    found.expect(params == declared.params, f"has {params} parameters and declares {declared.params}")
    # What torch has no formula for counts nothing, so that a foreign operation may declare more than is counted.
    fits = flops == probe.batch * declared.flops if trial.ir.is_trusted else flops <= probe.batch * declared.flops
    found.expect(fits, f"takes {flops} FLOPs for {probe.batch} examples and declares {probe.batch * declared.flops}")
    found.measure("params", params)
    found.measure("flops", declared.flops)
    found.measure("flops_positions", probe.rows // probe.batch)


def _expect_no_side_effects(trial: Trial, found: Findings) -> None:
    x = trial.input(trial.probes.odd)
    before, random_before = x.clone(), torch.get_rng_state()
    module = trial.grown_module(trial.dtype).train()
    y = module(x.requires_grad_())
    y.sum().backward()
    found.expect(torch.equal(x.detach(), before), "changes its input")
    found.expect(torch.equal(torch.get_rng_state(), random_before), "draws from the global random generator")
    h = trial.leaving(before)
    found.expect((y.shape, y.dtype) == (h.shape, h.dtype), f"returns {tuple(y.shape)} of {y.dtype}")
