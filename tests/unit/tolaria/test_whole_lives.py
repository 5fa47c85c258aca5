"""A graft joins, is culled, rolled back, saved, loaded and learns apart in loops of every kind, held against loops without it."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from esper.contracts.adaptation import Action, AdaptationDecision
from esper.ir import REGISTRY
from esper.kasmina import placement_of
from esper.services.tolaria.attachment import read_state
from esper.services.tolaria.incubator import Apprentice, Incubator
from esper.services.tolaria.kernels import ReadyKernel
from esper.services.tolaria.snapshot import Snapshot, Subject, capture, digest, restore
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.zoo import ZOO
from tests.laws.compiled import aot_eager, block_by_block, nothing_compiled
from tests.laws.support import kernel_for, wrapped
from tests.laws.test_law_3_isolated import FAULTS, Planted
from tests.laws.test_law_5_resumable import through_a_file
from tests.laws.training import Loader, equal, reseed
from tests.unit.tolaria.kinds import OPTIMIZERS, SCHEDULES, advance, groups_of

__all__ = ["nothing_compiled"]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@dataclass(frozen=True)
class Kind:
    """How a loop trains.

    Attributes:
        host: Name in the zoo.
        optimizer: Kind of optimizer.
        schedule: Kind of schedule.
        dtype: Of weights and inputs.
        micro_batches: Backward passes in one step.
        clip: Whether gradients are clipped.
        scaled: Whether a scaler and autocast are used.
        averaged: Whether an ``AveragedModel`` is in ``state=``.
        checkpointed: Whether activations are computed again.
        compiled: Nothing, the whole model through its wrapper, or block by block.
    """

    host: str = "mlp"
    optimizer: str = "adamw"
    schedule: str = "cosine"
    dtype: torch.dtype = torch.float32
    micro_batches: int = 1
    clip: bool = False
    scaled: bool = False
    averaged: bool = False
    checkpointed: bool = False
    compiled: str = ""


@dataclass
class Loop:
    """A training of one kind."""

    kind: Kind
    seed: int = 0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        kind = self.kind
        self.host = ZOO[kind.host]
        self.model = wrapped(self.host, dtype=kind.dtype, seed=self.seed)
        if kind.compiled == "blocks":
            block_by_block(self.model, aot_eager())
        self.called = torch.compile(self.model, backend=aot_eager()) if kind.compiled == "around" else self.model
        self.optimizer = OPTIMIZERS[kind.optimizer](groups_of(self.model))
        self.schedule = SCHEDULES[kind.schedule](self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3, enabled=kind.scaled)
        self.loader = Loader(self.host, kind.dtype)
        self.average = torch.optim.swa_utils.AveragedModel(self.model) if kind.averaged else None
        given = [item for item in (self.loader, self.scaler, self.average) if item is not None]
        others, followers = read_state(given, self.model, self.optimizer)
        self.subject = Subject(self.model, self.optimizer, self.schedule, others, followers)
        self.surgeon = Surgeon(self.subject, snapshots_held=2, tolerance=1e-6)

    def train(self, steps: int, incubator: Incubator | None = None) -> list[float]:
        """Train, and return the losses."""
        self.model.train()
        losses = [self._step(incubator) for _ in range(steps)]
        assert all(loss == loss for loss in losses)
        return losses

    def graft(self, key: str = "join") -> Cut:
        """Join something at the first slot."""
        cut = Cut(next(iter(placement_of(self.model).slots)), 0)
        data, kernel_id = kernel_for(self.model, cut.slot, self._blueprint(cut.slot))
        self.surgeon.graft(cut, data, kernel_id=kernel_id, key=key, seen=None)
        return cut

    def take_in(self) -> tuple[Incubator, Apprentice]:
        """Let something learn apart at the last slot."""
        slot = list(placement_of(self.model).slots)[-1]
        data, kernel_id = kernel_for(self.model, slot, self._blueprint(slot))
        decision = AdaptationDecision(
            action=Action.LOAD_KERNEL, target_layer=slot, blueprint=self._blueprint(slot), kernel_id=kernel_id
        )
        incubator = Incubator.beside(self.model, self.optimizer, self.subject.others)
        return incubator, incubator.take_in(decision, ReadyKernel(kernel_id, "", data, 0.0), steps=99)

    def picture(self) -> dict[str, Any]:
        """Return all that there is of it now."""
        names = {id(p): n for n, p in self.model.named_parameters()}
        groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in self.optimizer.param_groups]
        saved = capture(self.subject).to_dict()
        return {
            "digest": digest(self.subject),
            **{key: saved[key] for key in ("schedule", "others", "rng")},
            "groups": groups,
        }

    def moments(self) -> dict[str, Any]:
        """Return what the optimizer holds for each parameter."""
        return capture(self.subject).optimizer.moments

    def _step(self, incubator: Incubator | None) -> float:
        for _ in range(self.kind.micro_batches):
            batch = self.loader.next()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.kind.scaled):
                loss = self.host.loss(self._forward(), batch) / self.kind.micro_batches
            self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if self.kind.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        advance(self.schedule, loss.item())
        if self.average is not None:
            self.average.update_parameters(self.model)
        if incubator is not None:
            incubator.step(look=True)
        return loss.item()

    def _forward(self) -> Any:
        if not self.kind.checkpointed:
            return self.called
        return lambda x: checkpoint(self.called, x.requires_grad_(x.is_floating_point()), use_reentrant=False)

    def _blueprint(self, slot: str) -> str:
        return next(iter(REGISTRY.eligible(placement_of(self.model).place(slot).site())))


def started(kind: Kind) -> Loop:
    loop = Loop(kind)
    reseed(4)
    loop.train(2)
    return loop


SETUPS = {
    "scaler": Kind(scaled=True),
    "accumulation": Kind(micro_batches=3),
    "clipping": Kind(clip=True),
    "average": Kind(averaged=True),
    "checkpointing": Kind(host="dropout", checkpointed=True),
    "bfloat16": Kind(dtype=torch.bfloat16),
    "blocks": Kind(host="residual_mlp", compiled="blocks"),
    "around": Kind(host="residual_mlp", compiled="around"),
}
EVERY_SETUP = pytest.mark.parametrize("kind", SETUPS.values(), ids=SETUPS)
KINDS = {
    **{f"optimizer {name}": Kind(optimizer=name, schedule="step") for name in OPTIMIZERS},
    **{f"schedule {name}": Kind(optimizer="sgd-momentum", schedule=name) for name in SCHEDULES},
}


def all_of(kinds: dict[str, Kind]) -> pytest.MarkDecorator:
    """Return every kind; all but those of ``SETUPS`` are slow."""
    cases = [
        pytest.param(kind, id=name, marks=() if name in SETUPS else pytest.mark.slow) for name, kind in kinds.items()
    ]
    return pytest.mark.parametrize("kind", cases)


@EVERY_SETUP
def test_a_cull_keeps_every_surviving_moment(kind: Kind) -> None:
    loop = started(kind)
    cut = loop.graft()
    loop.train(2)
    before = loop.moments()
    assert not loop.surgeon.cull(cut, key="join", put_back=False)
    after = loop.moments()
    assert after.keys() == {name for name in before if "esper_grafts" not in name}
    assert all(equal(moments, before[name]) for name, moments in after.items())
    loop.train(2)


@EVERY_SETUP
def test_a_rollback_takes_everything_back_and_training_goes_on_as_without_the_graft(kind: Kind) -> None:
    plain, loop = started(kind), started(kind)
    reseed(5)
    before = loop.picture()
    loop.graft()
    loop.train(2)
    assert loop.surgeon.roll_back("join")
    after = loop.picture()
    assert [name for name in before if not equal(before[name], after[name])] == []
    reseed(6)
    wanted = plain.train(2)
    reseed(6)
    assert loop.train(2) == wanted
    assert digest(loop.subject) == digest(plain.subject)


@all_of({**SETUPS, **KINDS})
def test_a_grown_loop_goes_on_from_a_file_as_if_it_had_never_stopped(kind: Kind) -> None:
    first = started(kind)
    first.graft()
    first.train(2)
    saved = through_a_file(capture(first.subject).to_dict())
    losses, wanted = first.train(3), first.picture()
    second = Loop(kind, seed=1)
    restore(second.subject, Snapshot.from_dict(saved))
    assert second.train(3) == losses
    found = second.picture()
    assert [name for name in wanted if not equal(wanted[name], found[name])] == []


APART = {name: kind for name, kind in {**SETUPS, **KINDS}.items() if kind.compiled != "around"}


@pytest.mark.parametrize("fault", ["sound", "nan"])
@all_of(APART)
def test_a_loop_trains_to_the_bit_as_if_nothing_learned_beside_it(kind: Kind, fault: str) -> None:
    plain, loop = started(kind), started(kind)
    reseed(5)
    wanted = plain.train(3), plain.picture()
    incubator, apprentice = loop.take_in()
    apprentice.incubation.kernel = Planted(apprentice.incubation.kernel, FAULTS[fault][0])
    reseed(5)
    assert loop.train(3, incubator) == wanted[0]
    assert apprentice.incubation.passes == (3 * kind.micro_batches if fault == "sound" else kind.micro_batches)
    for left in list(incubator.apprentices.values()):
        incubator.release(left)
    found = loop.picture()
    assert [name for name in found if not equal(found[name], wanted[1][name])] == []


def test_the_check_sees_a_graft_that_joined_instead() -> None:
    """The control: a loop that something changed is found out."""
    kind = replace(SETUPS["clipping"], host="mlp")
    plain, loop = started(kind), started(kind)
    loop.graft()
    assert plain.train(3) != loop.train(3)
