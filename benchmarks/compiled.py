"""What does a grown model cost a step beside the same network written by hand, eager and compiled, and what does a join cost?

A transformer with a perceptron grafted to its first block takes turns with the same network written out, and with a second
copy of that (the A/A control). The join is timed to the end of the first step after it, with the rehearsal of the region and
without; torch's cache on disk is left out, so that both compile from nothing.
"""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from time import perf_counter

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.dormant import training_step
from benchmarks.support.hosts import HOSTS, batch_of, fresh
from benchmarks.support.report import Answer, Target
from benchmarks.support.timing import Plan, Work, interleaved, paired_ratio
from esper.blueprints import catalog as catalog
from esper.blueprints import initial_state, pack_kernel
from esper.ir import REGISTRY, digest_of
from esper.kasmina import compile_regions, join, placement_of, wrap
from esper.kasmina.quiet import preserved_rng
from esper.services.tolaria.regions import CompiledRegions, EagerStep

LIMIT = 1.03
HOST = next(host for host in HOSTS if host.name == "transformer")
SLOT, BLUEPRINT = "blocks.0", "mlp_adapter"


class ByHand(nn.Module):
    """A block and the perceptron that a graft adds to it, as anyone would write them.

    Args:
        block: The block.
        width: Features of a token.
    """

    def __init__(self, block: nn.Module, width: int) -> None:
        super().__init__()
        self.block, self.norm = block, nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block returns with what the perceptron adds."""
        h = self.block(x)
        added: Tensor = self.down(functional.gelu(self.up(self.norm(h))))
        return h + added


def answer(*, quick: bool, seed: int) -> Answer:
    """Measure a training step and a join."""
    torch.set_num_threads(1)
    compiler = None if shutil.which("c++") or shutil.which("g++") else "no C++ compiler: aot_eager stands for inductor"
    backend = "inductor" if compiler is None else "aot_eager"
    rounds, turns = (1, 20) if quick else (6, 80)
    result = Answer(
        method=f"median of {rounds * turns} paired ratios of CPU time, one thread, order drawn; compiled by {backend}"
        + (f" ({compiler})" if compiler else "")
    )
    for kind in ("eager", "compiled"):
        torch._dynamo.reset()
        chosen = backend if kind == "compiled" else None
        times = interleaved(lambda index, chosen=chosen: _arms(chosen, seed + index), Plan(rounds, turns, 4e-3, seed))  # type: ignore[misc]
        result.ratios[f"{kind}.grown_over_by_hand"] = paired_ratio(times, "grown", "by_hand")
        result.ratios[f"{kind}.control"] = paired_ratio(times, "control", "by_hand")
        result.targets.append(
            Target(f"{kind}.grown_over_by_hand", "<=", LIMIT, result.ratios[f"{kind}.grown_over_by_hand"])
        )
    for rehearsed in (True, False):
        _add_join(result, backend, seed, rehearsed=rehearsed)
    result.targets.append(Target("recompiles of a graft", "<=", 1, result.metrics["join.graphs_with_rehearsal"]))
    return result


def _arms(backend: str | None, seed: int) -> Mapping[str, Work]:
    models = {"grown": _grown(seed, backend), "by_hand": _by_hand(seed, backend), "control": _by_hand(seed, backend)}
    return {name: training_step(model, HOST, seed) for name, model in models.items()}


def _grown(seed: int, backend: str | None) -> nn.Module:
    model = wrap(fresh(HOST, seed), example=batch_of(HOST, seed)[0])
    _graft(model)
    return model if backend is None else compile_regions(model, "model", backend=backend)


def _by_hand(seed: int, backend: str | None) -> nn.Module:
    model = fresh(HOST, seed)
    blocks = model.get_submodule("blocks")
    with preserved_rng():
        blocks._modules["0"] = ByHand(model.get_submodule(SLOT), 48)
    return model if backend is None else compile_regions(model, "model", backend=backend)


def _graft(model: nn.Module) -> None:
    ir = REGISTRY.build(BLUEPRINT, placement_of(model).place(SLOT).site())
    data = pack_kernel(ir, initial_state(ir, seed=0, dtype=torch.float32), seed=0)
    join(model, SLOT, 0, data, kernel_id=digest_of(data), blueprint=BLUEPRINT)


def _add_join(result: Answer, backend: str, seed: int, *, rehearsed: bool) -> None:
    """Time what blocks training at the boundary, and the first step after it."""
    torch._dynamo.reset()
    inputs, _ = batch_of(HOST, seed)
    model = compile_regions(wrap(fresh(HOST, seed), example=inputs), backend=backend)
    step, regions, eagerly = training_step(model, HOST, seed), CompiledRegions(model, None, nullcontext), EagerStep()
    step()
    regions.arm()
    eagerly.begin()
    step()
    eagerly.end()
    regions.disarm()
    with torch._inductor.config.patch(force_disable_caches=True):
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        began = perf_counter()
        _graft(model)
        if rehearsed:
            regions.follow()
        joined = perf_counter()
        step()
        ended = perf_counter()
    name = "with_rehearsal" if rehearsed else "without"
    result.metrics[f"join.boundary_s_{name}"] = joined - began
    result.metrics[f"join.first_step_s_{name}"] = ended - joined
    result.metrics[f"join.graphs_{name}"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
