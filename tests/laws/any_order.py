"""A training that grows, blends, is culled, rolled back, saved and loaded in whatever order hypothesis chooses."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from esper.ir import REGISTRY
from esper.kasmina import compile_regions, placement_of, topology
from esper.kasmina.grafted import Graft, grafts_of
from esper.kasmina.quiet import capture_rng
from esper.services.tolaria.snapshot import Snapshot, capture, digest, restore
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.zoo import ZOO
from tests.laws.support import kernel_for
from tests.laws.training import Picture, Training, equal, on, reseed

HELD = 3
SEEDS_PER_SLOT = 2
NEUTRAL = {torch.float32: 1e-6, torch.bfloat16: 0.0}
"""Largest change of a logit at birth; in bfloat16 nothing below two units in the last place can be told, so none is allowed."""
NEUTRAL_BY_INDUCTOR = 1e-5
"""The same in float32 where inductor makes the code."""
PRECISIONS: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "amp": {"amp": True}}
COMBINATIONS = (("sgd", "cosine"), ("adamw", "lambda"))


@dataclass(frozen=True)
class Setup:
    """One kind of training."""

    host: str
    combination: tuple[str, str]
    precision: str
    compiled: bool
    backend: str = "eager"
    device: str = "cpu"

    def training(self, *, seed: int) -> Training:
        """Return a fresh one; by inductor, which takes seconds for a region, its slots are compiled one by one."""
        in_place = self.compiled and self.backend != "inductor"
        training = Training(
            ZOO[self.host], self.combination, seed=seed, compiled=in_place, backend=self.backend,
            device=self.device, **PRECISIONS[self.precision],
        )  # fmt: skip
        if self.compiled and not in_place:
            compile_regions(training.model, backend=self.backend)
        return training

    @property
    def neutral(self) -> float:
        """The largest change of a logit that a birth may make."""
        return (
            NEUTRAL_BY_INDUCTOR
            if self.backend == "inductor"
            else NEUTRAL[PRECISIONS[self.precision].get("dtype", torch.float32)]
        )

    def __str__(self) -> str:
        return f"{self.host}-{self.combination[0]}-{self.precision}-{'compiled' if self.compiled else 'eager'}"


def setups(*, compiled: bool, backend: str = "eager", device: str = "cpu") -> Iterator[Setup]:
    """Yield every host with every optimizer and precision."""
    for host in ZOO:
        for combination in COMBINATIONS:
            for precision in PRECISIONS:
                yield Setup(host, combination, precision, compiled, backend, device)


class Sound(RuleBasedStateMachine):
    """A training of which some things always hold."""

    _training: Training

    def _outputs(self) -> Tensor:
        """Return logits in evaluation; nothing of the training changes."""
        model = self._training.model.eval()
        x = on(self._training.device, self._training.host.batch(seed=7, dtype=self._training.dtype)).x
        with torch.no_grad(), torch.autocast(self._training.device, torch.bfloat16, enabled=self._training.amp):
            outputs: Tensor = model(x)
        model.train()
        return outputs.float()

    @invariant()
    def the_optimizer_has_every_parameter_once(self) -> None:
        """No parameter is lost, and none stays that is not the model's."""
        held = [id(p) for group in self._training.optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in self._training.model.parameters())
        assert {id(p) for p in self._training.optimizer.state} <= set(held)

    @invariant()
    def the_schedule_knows_every_group(self) -> None:
        """A newborn's rate is that of the host group that it follows."""
        groups = self._training.optimizer.param_groups
        assert len(self._training.schedule.get_last_lr()) == len(groups)
        assert all(group["lr"] == groups[group.get("esper_like", index)]["lr"] for index, group in enumerate(groups))

    @invariant()
    def equal_states_have_equal_digests(self) -> None:
        """A state has one digest."""
        assert digest(self._training.subject) == digest(self._training.subject)


class Run(Sound):
    """A training that anything may happen to.

    Args:
        setup: What kind of training.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._setup = setup
        reseed(3)
        self._training = setup.training(seed=0)
        self._surgeon = self._surgeon_of(self._training)
        self._pictures: dict[str, Picture] = {}
        self._cuts: dict[str, Cut] = {}
        self._count = 0
        self._training.train(2)

    # -- what may happen ---------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 3))
    def train(self, steps: int) -> None:
        """Law 1 has tests of its own; here losses stay finite, whatever happened before."""
        assert all(torch.isfinite(torch.tensor(self._training.train(steps))))

    @rule(data=st.data())
    @precondition(lambda self: self._free())
    def grow(self, data: st.DataObject) -> None:
        """Laws 2 and 8: a graft changes no output and no moment, and draws nothing."""
        slot, seed_idx = data.draw(st.sampled_from(self._free()), label="place")
        site = placement_of(self._training.model).place(slot).site()
        blueprint = data.draw(st.sampled_from(sorted(REGISTRY.eligible(site))), label="blueprint")
        kernel, kernel_id = kernel_for(self._training.model, slot, blueprint, seed=self._count)
        before, outputs, rng = self._training.picture(), self._outputs(), capture_rng().to_dict()
        key, self._count = f"graft {self._count}", self._count + 1
        self._surgeon.graft(Cut(slot, seed_idx), kernel, kernel_id=kernel_id, key=key, seen=None, blueprint=blueprint)
        assert equal(rng, capture_rng().to_dict())
        self._pictures[key], self._cuts[key] = before, Cut(slot, seed_idx)
        self._forget()
        assert float((self._outputs() - outputs).abs().max()) <= self._setup.neutral
        after = self._training.picture()
        assert all(after.tensors[name].equal(value) for name, value in before.tensors.items())
        assert equal(after.moments, before.moments)

    @rule(alpha=st.sampled_from([0.25, 0.5, 1.0]), data=st.data())
    @precondition(lambda self: self._cuts)
    def blend(self, alpha: float, data: st.DataObject) -> None:
        """A graft of another strength."""
        cut = self._cuts[data.draw(st.sampled_from(sorted(self._cuts)), label="graft")]
        self._graft(cut).alpha.fill_(alpha)

    @rule(put_back=st.booleans(), data=st.data())
    @precondition(lambda self: self._cuts)
    def cull(self, put_back: bool, data: st.DataObject) -> None:
        """A cull restores all but the schedule's position where it may, and otherwise takes the seed alone."""
        key = data.draw(st.sampled_from(sorted(self._cuts)), label="graft")
        before = self._training.picture()
        restored = self._surgeon.cull(self._cuts[key], key=key, put_back=put_back)
        assert put_back or not restored
        after = self._training.picture()
        if restored:
            assert set(after.differences(self._pictures[key])) <= {"schedule", "groups"}
        else:
            assert all(equal(after.moments[name], before.moments[name]) for name in after.moments)
            assert all(after.tensors[name].equal(before.tensors[name]) for name in after.tensors)
        del self._cuts[key]
        self._forget()

    @rule(data=st.data())
    @precondition(lambda self: self._pictures)
    def roll_back(self, data: st.DataObject) -> None:
        """Law 4: everything is as it was, to the bit."""
        key = data.draw(st.sampled_from(sorted(self._pictures)), label="graft")
        wanted = self._pictures[key]
        assert self._surgeon.roll_back(key)
        assert not self._training.picture().differences(wanted)
        there = {(entry.slot, entry.seed_idx) for entry in topology(self._training.model)}
        self._cuts = {name: cut for name, cut in self._cuts.items() if (cut.slot, cut.seed_idx) in there}
        self._forget()

    @rule(steps=st.integers(1, 2))
    def save_and_load(self, steps: int) -> None:
        """Law 5: loaded into fresh objects, the training goes on as this one does."""
        saved = capture(self._training.subject)
        held = {key: snapshot.to_dict() for key, snapshot in self._surgeon.held.items()}
        losses, wanted = self._training.train(steps), self._training.picture()
        reseed(91)
        loaded = self._setup.training(seed=1)
        restore(loaded.subject, Snapshot.from_dict(saved.to_dict()))
        assert loaded.train(steps) == losses
        assert not loaded.picture().differences(wanted)
        self._training, self._surgeon = loaded, self._surgeon_of(loaded)
        self._surgeon.held.update((key, Snapshot.from_dict(snapshot)) for key, snapshot in held.items())

    # -- means -------------------------------------------------------------------------------------------------------

    def _surgeon_of(self, training: Training) -> Surgeon:
        return Surgeon(training.subject, snapshots_held=HELD, tolerance=1e-6)

    def _free(self) -> list[tuple[str, int]]:
        taken = {(entry.slot, entry.seed_idx) for entry in topology(self._training.model)}
        places = [(slot, index) for slot in self._training.slots for index in range(SEEDS_PER_SLOT)]
        return [place for place in places if place not in taken]

    def _graft(self, cut: Cut) -> Graft:
        module = placement_of(self._training.model).slots[cut.slot].module
        return cast(Graft, grafts_of(module)[str(cut.seed_idx)])

    def _forget(self) -> None:
        """Drop the pictures of states that are held no longer."""
        self._pictures = {key: picture for key, picture in self._pictures.items() if key in self._surgeon.held}


def run(setup: Setup, *, examples: int, steps: int) -> None:
    """Let hypothesis choose what happens to a training of one kind."""
    explore(lambda: Run(setup), examples=examples, steps=steps)


def explore(machine: Callable[[], RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    """Let hypothesis choose what happens; the same every time.

    Args:
        machine: Makes a fresh one.
        examples: Orders; 2 or more, as the first is always the simplest one, which repeats one act.
        steps: Acts in each; a failing order is told as it is, as a shorter one would take minutes to find.
    """
    assert examples >= 2, "the first order is always the simplest one"
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
