"""What does an operation cost on a network of real size, beside one training step and beside doing it by hand?

A transformer of 25 million parameters with AdamW moments is grafted, rolled back and saved. Beside it: one training step, the
same graft as a careful user would write it, and the same tensors written by safetensors alone.
"""

import copy
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from benchmarks.support.hosts import TransformerBlock
from benchmarks.support.report import Answer, Target
from benchmarks.support.timing import in_turn, undisturbed
from esper.blueprints import catalog as catalog
from esper.blueprints import initial_state, load_kernel, pack_kernel
from esper.ir import REGISTRY, digest_of
from esper.kasmina import placement_of, wrap
from esper.kasmina.passage import Passage
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.snapshot import Subject, digest
from esper.services.tolaria.surgery import Cut, Surgeon

WIDTH, HEADS, BLOCKS, VOCABULARY = 512, 8, 8, 512
BATCH, LENGTH = 4, 64
LEARNING_RATE = 1e-4
CHECKPOINT_BYTES = 100 * 2**20


class Transformer(nn.Module):
    """A causal language model of 25 million parameters.

    Args:
        blocks: How deep.
        width: Features of a token.
    """

    def __init__(self, blocks: int = BLOCKS, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, HEADS) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@dataclass
class Operation:
    """A training in its middle, a kernel for one of its slots, and the ways to join and undo it.

    Attributes:
        seed: Of weights and data.
        blocks: How deep the host is.
    """

    seed: int
    blocks: int = BLOCKS
    model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.tokens = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
        self.model = wrap(Transformer(self.blocks), "blocks.*", example=self.tokens[:, :-1])
        self.optimizer = AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.subject = Subject(self.model, self.optimizer)
        self.surgeon = Surgeon(self.subject, snapshots_held=1, tolerance=1e-6)
        self.slot = list(placement_of(self.model).slots)[-1]
        ir = REGISTRY.build("gated_mlp", placement_of(self.model).slots[self.slot].site())
        self.data = pack_kernel(ir, initial_state(ir, seed=self.seed, dtype="float32"), seed=self.seed)
        self.kernel_id = digest_of(self.data)
        self._prototype = load_kernel(self.data, digest=self.kernel_id)
        self.seen = Passage(torch.randn(BATCH, LENGTH, WIDTH))
        self.step()

    def step(self) -> None:
        """Train for one step."""
        logits = self.model(self.tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), self.tokens[:, 1:].flatten())
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()

    def graft(self) -> None:
        """Join the kernel as one transaction: snapshot, build, probe, join, optimizer."""
        self.surgeon.graft(Cut(self.slot, 0), self.data, kernel_id=self.kernel_id, key="before", seen=self.seen)

    def roll_back(self) -> None:
        """Put everything back as it was before the graft."""
        self.surgeon.roll_back("before")

    def graft_by_hand(self) -> None:
        """Save the state, add a copied module behind a hook, and give it a parameter group."""
        self._saved = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self._moments = copy.deepcopy(self.optimizer.state_dict())
        newborn = copy.deepcopy(self._prototype)
        module = placement_of(self.model).slots[self.slot].module
        self._hook = module.register_forward_hook(lambda _, args, output: output + newborn(output))
        self.optimizer.add_param_group({"params": list(newborn.parameters())})

    def roll_back_by_hand(self) -> None:
        """Take the module out and load what was saved."""
        self._hook.remove()
        for parameter in self.optimizer.param_groups.pop()["params"]:
            self.optimizer.state.pop(parameter, None)
        self.model.load_state_dict(self._saved)
        self.optimizer.load_state_dict(self._moments)


def answer(*, quick: bool, seed: int) -> Answer:
    """Measure grafts, rollbacks and checkpoints."""
    torch.set_num_threads(1)
    samples = 2 if quick else 9
    result = Answer(
        method=f"medians of the wall time of {samples} turns, each of all works one after the other; one thread"
    )
    _operations(result, Operation(seed, blocks=2 if quick else BLOCKS), samples)
    _checkpoints(result, CHECKPOINT_BYTES // (10 if quick else 1), samples)
    return result


def _operations(result: Answer, operation: Operation, samples: int) -> None:
    before = digest(operation.subject)
    works = {
        "graft": operation.graft,
        "rollback": operation.roll_back,
        "graft_by_hand": operation.graft_by_hand,
        "rollback_by_hand": operation.roll_back_by_hand,
    }
    times = in_turn(works, samples=samples)
    equal = float(digest(operation.subject) == before)
    step = in_turn({"step": operation.step}, samples=samples)["step"]
    result.metrics["host_parameters"] = sum(parameter.numel() for parameter in operation.model.parameters())
    result.metrics.update(graft_s=times["graft"], rollback_s=times["rollback"])
    result.baselines.update(
        step_s=step, graft_by_hand_s=times["graft_by_hand"], rollback_by_hand_s=times["rollback_by_hand"]
    )
    result.ratios["graft_over_step"] = times["graft"] / step
    result.ratios["graft_over_by_hand"] = times["graft"] / times["graft_by_hand"]
    result.ratios["rollback_over_by_hand"] = times["rollback"] / times["rollback_by_hand"]
    result.targets += [
        Target("graft_over_step", "<=", 2.0, result.ratios["graft_over_step"]),
        Target("rollback_s", "<=", 1.0, times["rollback"]),
        Target("rollback_equal", "==", 1.0, equal),
    ]


def _checkpoints(result: Answer, size_bytes: int, samples: int) -> None:
    tensors = {f"layer{index}.weight": torch.randn(size_bytes // 4 // 25) for index in range(25)}
    with tempfile.TemporaryDirectory() as place, CheckpointManager(Path(place) / "kept", keep_last=1) as manager:
        steps = iter(range(10**6))
        alone = Path(place) / "alone.safetensors"
        works = {
            "safetensors": lambda: save_file(tensors, alone),
            "checkpoint": lambda: manager.save({"model": tensors}, step=next(steps)),
        }
        times = in_turn(works, samples=samples)
        blocked = []
        with undisturbed():
            for _ in range(samples):
                began = perf_counter()
                manager.save({"model": tensors}, step=next(steps), blocking=False)
                blocked.append(perf_counter() - began)
                manager.wait()
    result.metrics.update(checkpoint_s=times["checkpoint"], blocked_s=statistics.median(blocked))
    result.baselines["safetensors_s"] = times["safetensors"]
    result.ratios["checkpoint_over_safetensors"] = times["checkpoint"] / times["safetensors"]
    result.targets += [
        Target("checkpoint_over_safetensors", "<=", 1.5, result.ratios["checkpoint_over_safetensors"]),
        Target("blocked_s", "<=", 0.05, statistics.median(blocked)),
    ]
