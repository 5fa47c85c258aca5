"""What does a grown model cost a step beside the same network written by hand, eager and compiled, and what does a join cost?

A transformer with a perceptron grafted to its first block takes turns with the same network written out, and with a second
copy of that (the A/A control). The join is timed to the end of the first step after it, with the rehearsal of the region and
without; torch's cache on disk is left out, so that both compile from nothing.
"""

import shutil
import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from time import perf_counter
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.dormant import training_step
from benchmarks.support.hosts import HOSTS, batch_of, fresh
from benchmarks.support.process import in_process
from benchmarks.support.report import Answer, Target
from benchmarks.support.timing import Plan, Work, interleaved, paired_ratio
from esper.blueprints import catalog as catalog
from esper.blueprints import initial_state, pack_kernel
from esper.ir import REGISTRY, digest_of
from esper.kasmina import compile_regions, join, placement_of, wrap
from esper.kasmina.quiet import preserved_rng
from esper.services.tolaria.regions import CompiledRegions, EagerStep

LIMIT = 1.03
"""What growth may cost a step beside a hand that knew the end."""
SAMPLE_S = 4e-3
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
    rounds, turns = (1, 20) if quick else (6, 80)
    why = _why_not_inductor()
    backend, note = ("aot_eager", f", as {why}") if why else ("inductor", "")
    result = Answer(
        method=f"median of {rounds * turns} paired ratios of CPU time, one thread, order drawn, places in memory exchanged, "
        f"in a process of its own; compiled by {backend}{note}"
    )
    found: Any = in_process("benchmarks.compiled:measured", backend=backend, rounds=rounds, turns=turns, seed=seed)
    for kind, times in found["steps"].items():
        result.metrics[f"{kind}.grown_us"] = 1e6 * statistics.median(times["grown"])
        result.baselines[f"{kind}.by_hand_us"] = 1e6 * statistics.median(times["by_hand"])
        result.ratios[f"{kind}.grown_over_by_hand"] = ratio = paired_ratio(times, "grown", "by_hand")
        result.ratios[f"{kind}.control"] = control = paired_ratio(times, "control", "by_hand")
        result.targets += [
            Target(f"{kind}.grown_over_by_hand", "<=", LIMIT, ratio),
            Target(f"{kind}.control", "<=", 1.01, control),
            Target(f"{kind}.control", ">=", 0.99, control),
        ]
    result.metrics.update(found["joins"])
    result.targets.append(Target("graphs compiled by a graft", "<=", 1, found["joins"]["join.graphs_with_rehearsal"]))
    return result


def measured(*, backend: str, rounds: int, turns: int, seed: int) -> dict[str, dict[str, Any]]:
    """Return the seconds of every turn by arm, eager and compiled, and what a join took."""
    torch.set_num_threads(1)
    steps = {}
    for kind, chosen in (("eager", None), ("compiled", backend)):
        torch._dynamo.reset()
        steps[kind] = interleaved(partial(_arms, chosen, seed), Plan(rounds, turns, SAMPLE_S, seed))
    joins: dict[str, float] = {}
    for rehearsed in (True, False):
        joins |= _join(backend, seed, rehearsed=rehearsed)
    return {"steps": steps, "joins": joins}


def _arms(backend: str | None, first: int, index: int) -> Mapping[str, Work]:
    """Return equal networks, made in an order that changes from round to round: the first one made is the slowest."""
    seed = first + index
    makers = [("grown", _grown), ("by_hand", _by_hand), ("control", _by_hand)]
    turn = index % len(makers)
    models = {name: make(seed, backend) for name, make in makers[turn:] + makers[:turn]}
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


def _join(backend: str, seed: int, *, rehearsed: bool) -> dict[str, float]:
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
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    return {
        f"join.boundary_s_{name}": joined - began,
        f"join.first_step_s_{name}": ended - joined,
        f"join.graphs_{name}": graphs,
    }


def _why_not_inductor() -> str:
    if not (shutil.which("c++") or shutil.which("g++")):
        return "there is no C++ compiler for inductor"
    # inductor hands its linker the folder of torch unquoted
    return "the path of torch has a space in it, which inductor's linker does not bear" if " " in torch.__file__ else ""
