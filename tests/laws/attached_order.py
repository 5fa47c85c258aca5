"""A run that grows by a controller and by hand, is judged, goes wrong, is undone, saved and loaded in any order."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from hypothesis.stateful import invariant, precondition, rule
from torch import Tensor, nn

from esper.contracts.adaptation import Candidate
from esper.kasmina import SeedState, placement_of, topology
from esper.services.tolaria.acceptance import FEWEST_WINDOWS
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.growth import Growth
from esper.testing.controllers import GraftAt
from esper.testing.zoo import ZOO
from tests.laws.any_order import Sound
from tests.laws.test_law_5_resumable import story, through_a_file, until_ready
from tests.laws.training import Picture, Training, equal, reseed

EVERY, STEPS = 2, 32
"""Short, so that a graft is judged after four boundaries at most; what comes after the planned end is tried too."""
ASKED = range(FEWEST_WINDOWS + 2, 99, 4)
"""Boundaries at which the controller asks for a graft."""
JOINED = (SeedState.BLENDING, SeedState.HOLDING, SeedState.EVALUATING, SeedState.FOSSILIZED)
NEUTRAL = 1e-6
"""Largest change of a logit at birth; of its size, where it is above 1 and something learned apart."""


class AttachedRun(Sound):
    """A run that anything may happen to; a graft in its first slot is planted to do harm.

    Args:
        host: Name in the zoo.
        combination: Names of optimizer and schedule.
        root: Of a library that has every kernel.
    """

    def __init__(self, host: str, combination: tuple[str, str], root: Path) -> None:
        super().__init__()
        self._host, self._combination, self._root = host, combination, root
        reseed(3)
        self._begin(seed=0)
        self._joins: dict[str, Picture] = {}
        self._before: list[tuple[Picture, Tensor]] = []
        self._poisoned = False
        self.train(2 * FEWEST_WINDOWS + EVERY)

    def teardown(self) -> None:
        """End the services of the run."""
        self._growth.close()

    # -- what may happen ---------------------------------------------------------------------------------------------

    @rule(steps=st.integers(1, 3))
    def train(self, steps: int) -> None:
        """What the run does between two optimizer steps leaves the training as it is, but for what its events tell."""
        for _ in range(steps):
            self._step()

    @rule()
    def train_until_verdicts_are_due(self) -> None:
        """The same over some boundaries."""
        self.train(8)

    @rule(data=st.data(), incubate=st.sampled_from([0, 0, 3]))
    @precondition(lambda self: self._free)
    def grow(self, data: st.DataObject, incubate: int) -> None:
        """Laws 2, 3 and 8: a graft by hand changes no output and no moment, and draws nothing."""
        slot = data.draw(st.sampled_from(sorted({c.slot for c in self._free})), label="slot")
        blueprint = data.draw(
            st.sampled_from(sorted({c.blueprint for c in self._free if c.slot == slot})), label="blueprint"
        )
        before = self._training.picture()
        self._check(before, [self._growth.graft(slot, blueprint, incubate=incubate)])

    @rule(data=st.data())
    @precondition(lambda self: self._held)
    def roll_back(self, data: st.DataObject) -> None:
        """Law 4: everything is as it was before the join, to the bit."""
        event = self._held[data.draw(st.integers(0, len(self._held) - 1), label="graft")]
        self._growth.rollback(event)
        self._is_as_before(event)

    @rule(data=st.data())
    @precondition(lambda self: self._apprentices)
    def withdraw(self, data: st.DataObject) -> None:
        """Law 3: what learns apart leaves no trace."""
        event = self._apprentices[data.draw(st.integers(0, len(self._apprentices) - 1), label="apprentice")]
        before = self._training.picture()
        self._growth.rollback(event)
        assert not self._training.picture().differences(before, without=("classes",))

    @rule()
    @precondition(lambda self: self._held and not self._poisoned)
    def go_wrong(self) -> None:
        """Values that are not finite cost the graft that may have made them, and nothing that was there before it."""
        self._poisoned = True
        with torch.no_grad():
            next(self._training.model.parameters()).fill_(torch.nan)
        events = self._growth.step(torch.nan)
        (undone,) = [event for event in events if event.kind is EventKind.ROLLED_BACK]
        self._is_as_before(undone)

    @rule()
    @precondition(lambda self: self._locked)
    def unlock(self) -> None:
        """What was rolled back may grow again where the user says so."""
        self._growth.unlock(*self._locked[0])

    @rule(steps=st.integers(1, 8))
    def save_and_load(self, steps: int) -> None:
        """Law 5: loaded into fresh objects, the run goes on as this one does, and tells the same."""
        saved = through_a_file(self._growth.state_dict())
        losses = [self._step() for _ in range(steps)]
        wanted, told = self._training.picture(), story(self._growth)
        self._growth.close()
        reseed(91)
        self._begin(seed=1)
        self._growth.load_state_dict(saved)
        assert [self._step() for _ in range(steps)] == losses
        assert not self._training.picture().differences(wanted)
        assert story(self._growth) == told

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def the_book_says_what_the_model_is(self) -> None:
        """A seed is joined in the book exactly where a graft is in the model."""
        joined = {place for place, seed in placement_of(self._training.model).seeds.items() if seed.state in JOINED}
        assert {(entry.slot, entry.seed_idx) for entry in topology(self._training.model)} == joined

    @invariant()
    def nothing_fails_unseen(self) -> None:
        """Nothing that was handed to the background failed or was dropped."""
        assert not any(self._growth.counters["run"].values())

    # -- means -------------------------------------------------------------------------------------------------------

    def _begin(self, *, seed: int) -> None:
        self._training = training = Training(ZOO[self._host], self._combination, seed=seed)
        batch = training.host.batch(seed=10**6)

        def validate(model: nn.Module) -> Tensor:
            logits = model(batch.x)
            losses = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.target.reshape(-1), reduction="none")
            return losses + 5.0 * sum(entry.slot == training.slots[0] for entry in topology(model))

        self._growth: Growth = training.attach(
            self._root, validate=validate, every=EVERY, steps=STEPS, controller=GraftAt(*ASKED), late="wait"
        )  # fmt: skip
        self._growth.before_graft(lambda: self._before.append((self._training.picture(), self._outputs())))
        until_ready(self._growth)

    def _step(self) -> float:
        (loss,) = self._training.train(1)
        before = self._training.picture()
        self._check(before, self._growth.step(loss))
        return loss

    def _check(self, before: Picture, events: list[GrowthEvent]) -> None:
        """Hold what happened to a training against what was told of it."""
        after, joins, self._before = self._training.picture(), self._before, []
        grafted = [event for event in events if event.kind is EventKind.GRAFTED]
        culled = [event for event in events if event.kind is EventKind.CULLED]
        assert len(joins) == len(grafted), "none is told of that did not join"
        for event, (picture, outputs) in zip(grafted, joins, strict=True):
            self._joins[event.decision_id] = picture
            size = outputs.abs().clamp(min=1.0) if self._learned_apart else 1.0
            assert float(((self._outputs() - outputs).abs() / size).max()) <= NEUTRAL * len(grafted)
        restored = [event for event in culled if "was restored" in event.why]
        for event in restored:
            without = ("schedule", "groups", *(("classes",) if self._learned_apart else ()))
            assert not after.differences(self._joins[event.decision_id], without=without)
        if restored or any(event.kind is EventKind.ROLLED_BACK for event in events):
            return
        assert equal(after.rng, before.rng)
        left, entered = before.tensors.keys() - after.tensors.keys(), after.tensors.keys() - before.tensors.keys()
        assert bool(left) == bool(culled)
        assert bool(entered) == bool(grafted)
        for name in before.tensors.keys() & after.tensors.keys():
            assert name.endswith(".alpha") or equal(after.tensors[name], before.tensors[name])
            assert equal(after.moments.get(name), before.moments.get(name))
        assert after.position == before.position

    def _is_as_before(self, event: GrowthEvent) -> None:
        """Hold a training against what it was right before a join; what was withdrawn since does not learn apart again."""
        without = ("classes",) if self._learned_apart else ()
        assert not self._training.picture().differences(self._joins[event.decision_id], without=without)

    @property
    def _learned_apart(self) -> bool:
        return any(event.kind is EventKind.INCUBATING for event in self._growth.events)

    @property
    def _free(self) -> list[Candidate]:
        return [candidate for candidate in self._growth.propose() if not candidate.masked]

    @property
    def _held(self) -> list[GrowthEvent]:
        trials = self._growth._engine.trials
        return [
            event
            for event in self._growth.events
            if event.kind is EventKind.GRAFTED and trials.holds(event.decision_id)
        ]

    @property
    def _apprentices(self) -> list[GrowthEvent]:
        keys = {a.decision.decision_id for a in self._growth._engine.trials.incubator.apprentices.values()}
        return [
            event for event in self._growth.events if event.kind is EventKind.INCUBATING and event.decision_id in keys
        ]

    @property
    def _locked(self) -> list[tuple[str, int]]:
        seeds: Any = placement_of(self._training.model).seeds
        return [place for place, seed in seeds.items() if seed.state is SeedState.LOCKED]
