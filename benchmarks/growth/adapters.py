"""What learns on a frozen host: grafts of esper within a budget of parameters, all of them from the start or pruned by use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.growth.runs import Run
from benchmarks.growth.tasks import Data, Losses
from esper.contracts.kernel import BuildSpec
from esper.demos.training import num_params
from esper.ir import BlueprintIR, Graph, Handle, Layout, Site, build, cost
from esper.kasmina import Slot, detach, join, placement_of, wrap
from esper.kasmina.placement import CHILD
from esper.services.tezzeret.compiler import KernelCompiler

PRUNED = "pruned"
LINEARS = ("mix", "merge", "up", "down")
"""Linear layers of a block, by the names of `hosts.TransformerBlock`."""
BRANCHES = ("merge", "down")
"""Those that end a residual branch, where Houlsby et al. put their adapters."""
OVERSHOOT_SEEDS = 3
"""Seeds at each slot of what is pruned, each of half the size that the budget allows uniformly: 1.5 times the budget in all."""
PRUNED_FROM, PRUNED_UNTIL = 0.2, 0.6
"""Shares of the run between which pruning goes on."""
CUTS = 20
"""Times at which something may be pruned."""
MEMORY = 0.85
"""Of the moving average of use; AdaLoRA's ``beta1``."""


class Adapters(Protocol):
    """What learns on a frozen host.

    Attributes:
        model: Host and adapters.
    """

    model: nn.Module

    @property
    def params(self) -> int:
        """Parameters in use, those of the host included."""
        ...

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return what one batch is trained for."""
        ...

    def settle(self, step: int) -> bool:
        """Take note of an optimizer step while its gradients are there; tells whether the model may have become another."""
        ...


@dataclass(frozen=True)
class Design:
    """A family of blueprints by size.

    Attributes:
        layers: Of each block, behind which one stands.
        draw: From a size to a blueprint's design.
    """

    layers: tuple[str, ...]
    draw: Callable[[int], Callable[[Graph, Site], Handle]]


def _low_rank(size: int) -> Callable[[Graph, Site], Handle]:
    """F(x) = B A x behind a linear layer W: together W + B A W, a change of W of that rank."""

    def design(g: Graph, site: Site) -> Handle:
        inner = g.pointwise(g.input, out=size, bias=False)
        return g.pointwise(inner, out=site.channels, bias=False, init="zero")

    return design


def _bottleneck(size: int) -> Callable[[Graph, Site], Handle]:
    """F(x) = B gelu(A x + a) + b, after Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP"."""
    return lambda g, site: g.pointwise(g.gelu(g.pointwise(g.input, out=size)), out=site.channels, init="zero")


def _gated(size: int) -> Callable[[Graph, Site], Handle]:
    """F(x) = B ((V x) . silu(G x)) + b, after Shazeer 2020, "GLU Variants Improve Transformer", equation 6."""

    def design(g: Graph, site: Site) -> Handle:
        value, gate = (g.pointwise(g.input, out=size) for _ in range(2))
        return g.pointwise(g.mul(value, g.silu(gate)), out=site.channels, init="zero")

    return design


DESIGNS = {
    "low-rank": Design(LINEARS, _low_rank),
    "bottleneck": Design(BRANCHES, _bottleneck),
    "gated": Design(BRANCHES, _gated),
}


@dataclass
class Seed:
    """One graft of a host.

    Attributes:
        slot: Name of its slot.
        seed_idx: Its place there.
        parameters: What learns.
        use: Moving average of |w · dL/dw| per parameter.
    """

    slot: str
    seed_idx: int
    parameters: list[nn.Parameter]
    use: float = 0.0

    @property
    def params(self) -> int:
        """How many parameters it has."""
        return sum(parameter.numel() for parameter in self.parameters)


class Grafted:
    """Grafts of one design on a host.

    Args:
        model: The host; it is wrapped and frozen.
        run: Has the rank whose parameters are the budget, the steps, and the seed of the grafts' weights.
        data: For shapes.
        losses: What is trained for.
        design: What is grafted.
        pruned: Whether they begin at 1.5 times the budget and the least used leave.
    """

    def __init__(self, model: nn.Module, run: Run, data: Data, losses: Losses, design: Design, *, pruned: bool) -> None:
        self.model = model
        self._losses, self._steps = losses, run.steps
        self.budget = lora_params(model, run.rank)
        blocks = [name for name, _ in model.named_children() if name.startswith("block")]
        slots = [f"{block}.{layer}" for block in blocks for layer in design.layers]
        wrap(model, slots=[Slot(name, layout=Layout.TOKENS) for name in slots], example=data.train.inputs[:2])
        size = _size_within(model, slots, design, self.budget)
        each = [-(-size // 2)] * OVERSHOOT_SEEDS if pruned else [size]
        self.seeds = [
            self._grafted(slot, index, design, number, run.seed) for slot in slots for index, number in enumerate(each)
        ]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f"{CHILD}." in name)
        self._begun_with = self._added

    @property
    def params(self) -> int:
        """Parameters of host and grafts."""
        return num_params(self.model)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self._losses(self.model(inputs), labels).mean()

    def settle(self, step: int) -> bool:
        """Follow the use of every graft, and drop the least used ones as the schedule has it."""
        if self._begun_with <= self.budget:
            return False
        for seed in self.seeds:
            seed.use = MEMORY * seed.use + (1 - MEMORY) * _use(seed)
        if step % max(1, self._steps // CUTS):
            return False
        before = len(self.seeds)
        while self._added > self._allowed(step):
            least = min(self.seeds, key=lambda seed: seed.use)
            detach(self.model, least.slot, least.seed_idx)
            self.seeds.remove(least)
        return len(self.seeds) < before

    @property
    def _added(self) -> int:
        return sum(seed.params for seed in self.seeds)

    def _allowed(self, step: int) -> float:
        """Return how many parameters there may be: a straight line from those of the start to the budget."""
        done = min(1.0, max(0.0, (step / self._steps - PRUNED_FROM) / (PRUNED_UNTIL - PRUNED_FROM)))
        return self._begun_with + done * (self.budget - self._begun_with)

    def _grafted(self, slot: str, index: int, design: Design, size: int, seed: int) -> Seed:
        ir = _drawn(self.model, slot, design, size)
        weights = BuildSpec(weight_seed=sum(map(ord, slot)) + 1009 * index + 100_003 * seed)
        kernel = KernelCompiler().compile(ir, weights)
        newborn = join(self.model, slot, index, kernel.kernel_binary, kernel_id=kernel.artifact_id, blueprint=ir.name)
        return Seed(slot, index, list(newborn.parameters.values()))


def adapters_of(model: nn.Module, run: Run, data: Data, losses: Losses) -> Adapters:
    """Put on a host what a run names: ``PEFT LoRA``, ``PEFT AdaLoRA``, or a design, with ``, pruned`` where it is."""
    design, _, how = run.adapters.partition(", ")
    if design in DESIGNS:
        return Grafted(model, run, data, losses, DESIGNS[design], pruned=how == PRUNED)
    from benchmarks.growth.peft_adapters import PEERS

    return PEERS[run.adapters](model, run, losses)


def lora_params(model: nn.Module, rank: int) -> int:
    """Return how many parameters a uniform LoRA of a rank has on all linear layers of the blocks."""
    layers = (module for name, module in model.named_modules() if name.rpartition(".")[2] in LINEARS)
    return sum(rank * (m.in_features + m.out_features) for m in layers if isinstance(m, nn.Linear))


def _size_within(model: nn.Module, slots: list[str], design: Design, budget: int) -> int:
    def total(size: int) -> int:
        return sum(
            cost(_drawn(model, slot, design, size), placement_of(model).place(slot).extent).params for slot in slots
        )

    size = 1
    while total(size + 1) <= budget:
        size += 1
    return size


def _drawn(model: nn.Module, slot: str, design: Design, size: int) -> BlueprintIR:
    return build(design.draw(size), placement_of(model).place(slot).site(), "adapter")


@torch.no_grad()
def _use(seed: Seed) -> float:
    """Return how much the loss would change, to first order, if parameters were zero: the mean of |w · dL/dw|.

    References:
        Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", equation 8.
    """
    felt = [(p * p.grad).abs().sum() for p in seed.parameters if p.grad is not None]
    return float(torch.stack(felt).sum()) / seed.params if felt else 0.0
