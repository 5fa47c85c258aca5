"""What does a graft cost, does it leave the outputs alone at birth, and is it alive?

Every blueprint of the catalogue is grafted at every slot of every host that has one, and taken out again. Beside it the same
is done by hand: a copied module behind a hook, a copied state, one parameter group more, and the way back.
"""

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.support.hosts import HOSTS, Host, batch_of, fresh
from benchmarks.support.report import Answer, Target
from benchmarks.support.timing import in_turn
from esper.blueprints import catalog as catalog
from esper.blueprints import initial_state, load_kernel, pack_kernel
from esper.ir import REGISTRY, Reads, digest_of, liveness
from esper.kasmina import Newborn, placement_of, wrap
from esper.kasmina.passage import Passage
from esper.services.tolaria.snapshot import Subject, digest
from esper.services.tolaria.surgery import Cut, Surgeon

NEUTRAL = 1e-6
"""Largest change of a logit at birth, and smallest live gradient beside the largest of its graft (law 2)."""
LEARNING_RATE = 1e-3
STEPS = 3
"""Steps before a graft, so that the optimizer has moments; and steps 0, 1 and 2 after it, by which all must be alive."""


@dataclass
class Training:
    """A host in the middle of its training, with a kernel for one of its slots.

    Attributes:
        host: The host.
        seed: Of weights and data.
        slot: Where the kernel goes; empty while there is none.
        blueprint: Name of the kernel's design.
        data: The kernel's bytes.
    """

    host: Host
    seed: int
    slot: str = ""
    blueprint: str = ""
    data: bytes = b""
    model: nn.Module = field(init=False)
    optimizer: AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.inputs, self.targets = batch_of(self.host, self.seed)
        self.model = wrap(fresh(self.host, self.seed), example=self.inputs)
        self.optimizer = AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.subject = Subject(self.model, self.optimizer)
        self.surgeon = Surgeon(self.subject, snapshots_held=1, tolerance=NEUTRAL)
        for _ in range(STEPS):
            self.step()
        self.seen = self._seen() if self.slot else None

    def step(self) -> None:
        """Train for one step; gradients stay for whoever wants to look at them."""
        self.optimizer.zero_grad()
        torch.autograd.backward(self.host.loss(self.model(self.inputs), self.targets))
        self.optimizer.step()

    def graft(self) -> Newborn:
        """Join the kernel as one transaction: snapshot, build, probe, join, optimizer."""
        return self.surgeon.graft(
            Cut(self.slot, 0), self.data, kernel_id=digest_of(self.data), key="before", seen=self.seen
        )

    def roll_back(self) -> None:
        """Put everything back as it was before the graft."""
        self.surgeon.roll_back("before")

    def logits(self) -> tuple[Tensor, ...]:
        """Return what the model computes in evaluation and in training; running statistics are left as they were."""
        twin = copy.deepcopy(self.model)
        with torch.no_grad():
            return twin.eval()(self.inputs), twin.train()(self.inputs)

    def _seen(self) -> Passage:
        passages: list[Passage] = []
        module = placement_of(self.model).slots[self.slot].module
        with module.register_forward_hook(lambda _, args, out: passages.append(Passage.of(args, out))), torch.no_grad():
            self.model(self.inputs)
        return passages[0]


class ByHand:
    """The same graft as a careful user would write it.

    Args:
        training: The training that is operated on.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._prototype = load_kernel(training.data, digest=digest_of(training.data))

    def graft(self) -> None:
        """Save the state, add a copied module behind a hook, and give it a parameter group."""
        model, optimizer = self._training.model, self._training.optimizer
        self._saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self._moments = copy.deepcopy(optimizer.state_dict())
        newborn = copy.deepcopy(self._prototype)
        module = placement_of(model).slots[self._training.slot].module
        reads_input = newborn.ir.reads is Reads.INPUT
        self._hook = module.register_forward_hook(
            lambda _, args, output: output + newborn(args[0] if reads_input else output)
        )
        optimizer.add_param_group({"params": list(newborn.parameters())})

    def roll_back(self) -> None:
        """Take the module out and load what was saved."""
        optimizer = self._training.optimizer
        self._hook.remove()
        for parameter in optimizer.param_groups.pop()["params"]:
            optimizer.state.pop(parameter, None)
        self._training.model.load_state_dict(self._saved)
        optimizer.load_state_dict(self._moments)


def answer(*, quick: bool, seed: int) -> Answer:
    """Measure times, changes of the outputs and gradients of every graft."""
    torch.set_num_threads(1)
    samples = 5 if quick else 50
    result = Answer(
        method=f"median over all grafts of the median wall time of {samples} repetitions; one thread, no garbage "
        "collection, AdamW with moments; change and gradients: the worst of all grafts"
    )
    trainings = [training for host in HOSTS for training in _trainings(host, seed)]
    result.metrics["grafts"] = len(trainings)
    _times(result, trainings, samples)
    _births(result, trainings)
    return result


def _trainings(host: Host, seed: int) -> Iterator[Training]:
    """Yield every blueprint at every slot, each with a training of its own."""
    for slot, place in placement_of(Training(host, seed).model).slots.items():
        for name in REGISTRY.eligible(place.site()):
            ir = REGISTRY.build(name, place.site())
            data = pack_kernel(ir, initial_state(ir, seed=seed, dtype="float32"), seed=seed)
            yield Training(host, seed, slot, name, data)


def _times(result: Answer, trainings: list[Training], samples: int) -> None:
    taken: dict[str, list[float]] = {}
    for training in trainings:
        for name, seconds in {**_rebuild(training, samples), **_operation(training, samples)}.items():
            taken.setdefault(name, []).append(1e6 * seconds)
    middle = {name: statistics.median(times) for name, times in taken.items()}
    for job, hand in (("rebuild", "deepcopy"), ("graft", "graft_by_hand"), ("rollback", "rollback_by_hand")):
        result.metrics[f"{job}_us"] = middle[job]
        result.metrics[f"{job}_slowest_us"] = max(taken[job])
        result.baselines[f"{hand}_us"] = middle[hand]
        result.ratios[f"{job}_over_{hand}"] = middle[job] / middle[hand]


def _rebuild(training: Training, samples: int) -> dict[str, float]:
    """Time a kernel from its bytes, digest verified, beside a copy of the finished module."""
    data, kernel_id = training.data, digest_of(training.data)
    module = load_kernel(data, digest=kernel_id)
    works = {"rebuild": lambda: load_kernel(data, digest=kernel_id), "deepcopy": lambda: copy.deepcopy(module)}
    return in_turn(works, samples=samples)


def _operation(training: Training, samples: int) -> dict[str, float]:
    """Time a graft and its rollback, beside the same by hand."""
    hand = ByHand(training)
    works = {
        "graft": training.graft,
        "rollback": training.roll_back,
        "graft_by_hand": hand.graft,
        "rollback_by_hand": hand.roll_back,
    }
    return in_turn(works, samples=samples)


def _births(result: Answer, trainings: list[Training]) -> None:
    births = [_birth(training) for training in trainings]
    worst = {name: pick(birth[name] for birth in births) for name, (_, _, pick) in BARS.items()}
    result.metrics.update(worst)
    result.targets += [Target(name, op, bar, worst[name]) for name, (op, bar, _) in BARS.items()]


BARS = {
    "largest_logit_change": ("<=", NEUTRAL, max),
    "smallest_zero_factor_gradient": (">", 0.0, min),
    "smallest_gradient_beside_largest": (">", NEUTRAL, min),
    "rollback_equal": ("==", 1.0, min),
}
"""What is measured at a birth: how it is held against which bar, and which graft is the worst."""


def _birth(training: Training) -> dict[str, float]:
    """Graft once, train for three steps, and roll back."""
    digest_before, before = digest(training.subject), training.logits()
    newborn = training.graft()
    change = max(float((now - was).abs().max()) for now, was in zip(training.logits(), before, strict=True))
    peaks: dict[str, float] = {}
    for step in range(STEPS):
        training.step()
        found = {n: float(p.grad.abs().max()) for n, p in newborn.kernel.named_parameters() if p.grad is not None}
        if step == 0:
            zero_factor = min(found.get(name, 0.0) for name in liveness(newborn.kernel.ir).zero_factors)
        largest = max(found.values())
        peaks = {n: max(peaks.get(n, 0.0), value / largest) for n, value in found.items()}
    names = [name for name, _ in newborn.kernel.named_parameters()]
    training.roll_back()
    return {
        "largest_logit_change": change,
        "smallest_zero_factor_gradient": zero_factor,
        "smallest_gradient_beside_largest": min(peaks.get(name, 0.0) for name in names),
        "rollback_equal": float(digest(training.subject) == digest_before),
    }
