"""Grafts from their joining to their verdict: join, judge, keep, cull, roll back; each whole or not at all."""

import math
from dataclasses import replace
from typing import Any

from esper.contracts.adaptation import AdaptationDecision, Outcome, Verdict
from esper.contracts.ids import new_id
from esper.errors import GraftFailed, NotFound
from esper.ir import BlueprintIR
from esper.kasmina import GraftEntry, Newborn, Placement, Seed, SeedState, placement_of, topology
from esper.kasmina.graft import set_strength, strength
from esper.kasmina.passage import Passage
from esper.services.tolaria.acceptance import Judgement, judge, placebo
from esper.services.tolaria.budget import count_params
from esper.services.tolaria.config import GrowthConfig, OnCull
from esper.services.tolaria.control import Control, NoControl
from esper.services.tolaria.events import EventKind, EventLog, GrowthEvent
from esper.services.tolaria.held import Book, Held
from esper.services.tolaria.incubator import Apprentice, Incubator
from esper.services.tolaria.kernels import ReadyKernel
from esper.services.tolaria.record import Position, Rise, Trial
from esper.services.tolaria.seeds import SeedBook
from esper.services.tolaria.snapshot import Subject, capture, restore, whole
from esper.services.tolaria.surgery import Cut, Surgeon


class Trials:
    """Operates on the training and keeps the book of what came of it.

    Args:
        subject: The training.
        config: Settings of the run.
        events: Where everything is written down.
        run_id: Names the run in outcomes.
        incubator: What learns apart.
        control: What grafts are held against beside the run's own past.
    """

    def __init__(
        self, subject: Subject, config: GrowthConfig, events: EventLog, *, run_id: str, incubator: Incubator,
        control: Control | None = None,
    ) -> None:  # fmt: skip
        self.position = Position()
        self.topology_version = 0
        self.outcomes: list[Outcome] = []
        counted = count_params(subject.model)
        self.host_params, self.inherited_params = counted.host, counted.grafts
        self.incubator = incubator
        self._control: Control = control or NoControl()
        self.run_id = run_id
        self._config, self.events = config, events
        self._subject, self.team, self.model = subject, subject.team, subject.model
        self.placement: Placement = placement_of(subject.model)
        self.seeds = SeedBook(self.placement, embargo_boundaries=config.embargo_boundaries)
        self._surgeon = Surgeon(
            subject,
            snapshots_held=config.snapshots_held,
            tolerance=config.neutral_tolerance,
            rate=config.newborn_rate,
        )
        self._books: dict[str, Book] = {}
        self._inherit()

    @property
    def ended(self) -> bool:
        """Whether the planned length ends before the next boundary."""
        steps = self._config.steps
        return steps is not None and self.position.step + self._config.every > steps

    def rise(self) -> None:
        """Set every strength that is on its way to what it is after this optimizer step."""
        for rise in self.position.rises:
            if (alpha := rise.alpha(self.position.step)) is not None:
                set_strength(self.model, rise.slot, rise.seed_idx, alpha)
                self._control.rise(rise.slot, rise.seed_idx, alpha)

    def note(
        self, kind: EventKind, decision: AdaptationDecision | None = None, *, why: str, kept: bool | None = None
    ) -> GrowthEvent:
        """Write down what became of a decision, or something that has none."""
        of = decision or AdaptationDecision(decision_id="")
        return self.events.append(
            GrowthEvent(
                step=self.position.step, kind=kind, why=why, slot=of.target_layer or "", seed_idx=of.seed_idx,
                blueprint=of.blueprint or "", kernel_id=of.kernel_id or "", decision_id=of.decision_id, kept=kept,
            )
        )  # fmt: skip

    def join(
        self,
        decision: AdaptationDecision,
        ready: ReadyKernel,
        *,
        before: float,
        seen: Passage | None,
        apprentice: Apprentice | None = None,
    ) -> GrowthEvent:
        """Graft a kernel and open its trial.

        Args:
            decision: Names slot, seed and blueprint; its seed is germinated, or has learned apart.
            ready: The kernel.
            before: Mean held-out loss of the averaged weights now.
            seen: What passed through the slot, for the probe.
            apprentice: The same kernel after it learned apart.

        Returns:
            The event: grafted, or cancelled with the reason where the graft failed and the host was restored.
        """
        slot, step = str(decision.target_layer), self.position.step
        seed = self.seeds.of(slot, decision.seed_idx)
        book = self._book()
        if apprentice is None:
            seed.move(SeedState.LOADED, step=step)
        try:
            newborn = self._surgeon.graft(
                Cut(slot, seed.seed_idx),
                ready.data,
                kernel_id=ready.kernel_id,
                key=decision.decision_id,
                seen=seen,
                blueprint=ready.blueprint or decision.blueprint or "",
                apprentice=apprentice,
            )
        except GraftFailed as error:
            return self.cancel(decision, why=error.why)
        except BaseException as error:
            self.cancel(decision, why=f"{type(error).__name__}: {error}; the host was restored")
            raise
        self._books[decision.decision_id] = book
        self._books = {key: self._books[key] for key in self._surgeon.held}
        seed.move(SeedState.BLENDING, step=step)
        event = self._opened(decision, ready, newborn, before, learned=apprentice)
        self._control.joined(decision.decision_id, self._surgeon.held[decision.decision_id])
        return event

    def cancel(self, decision: AdaptationDecision, *, why: str) -> GrowthEvent:
        """Withdraw a decision whose seed is germinated, loaded or learning apart."""
        slot = str(decision.target_layer)
        seed = self.seeds.of(slot, decision.seed_idx)
        seed.move(SeedState.CANCELLED, step=self.position.step)
        self.seeds.rest(seed, self.position)
        return self.note(EventKind.CANCELLED, decision, why=why, kept=False)

    def advance(self, *, last: bool) -> list[GrowthEvent]:
        """Move every seed along at a boundary, and give the verdicts that are due.

        Args:
            last: Whether the planned run ends here, so that every open trial is judged.
        """
        self.seeds.wake(self.position)
        now = self.position.history[-1].validation
        if self.position.open_trials:
            self.position.tried()
        events: list[GrowthEvent] = []
        for trial in self.position.open_trials:
            if trial.key in self.position.trials:
                events += self._advance(trial, now, last=last)
        return events

    def dismiss(self, graft: GraftEntry, found: Judgement) -> GrowthEvent:
        """Take a graft out that was kept; training goes on without it."""
        place = (graft.slot, graft.seed_idx)
        trial = next((trial for trial in self.position.trials.values() if trial.place == place), None)
        if trial is None:
            price = self.placement.place(graft.slot).price(BlueprintIR.from_json(graft.ir))
            trial = Trial.of_earlier(graft, price, host_params=self.host_params)
            self.inherited_params -= trial.params
        seed = self.seeds.of(*place)
        seed.move(SeedState.EVALUATING, step=self.position.step)
        return self._culled(trial, seed, found, put_back=False)

    def roll_back(self, event: GrowthEvent, *, why: str) -> GrowthEvent:
        """Put the training back to before a join, and lock its slot.

        Raises:
            NotFound: If the state before that join is not held any more.
        """
        key, now = event.decision_id, self.position.step
        book = self._books.get(key)
        if book is None or not self._surgeon.roll_back(key):
            raise NotFound(
                f"the state before {event.blueprint} joined at {event.slot}",
                why=f"the last {self._config.snapshots_held} states are held",
                todo="roll back sooner, or resume from a checkpoint",
                code="ESP-5020",
            )
        undone = [trial for trial in self.position.trials.values() if trial.key in self._books_from(key)]
        seed = self.seeds.of(event.slot, event.seed_idx)
        seed.move(SeedState.ROLLED_BACK, step=self.position.step)
        seed.move(SeedState.LOCKED, step=self.position.step)
        self._reopen(book, keep=seed)
        for trial in undone:
            self._report(trial, Verdict.ROLLED_BACK, None)
        why += self._data_note(now - self.position.step)
        return self.events.append(replace(_of(event, EventKind.ROLLED_BACK, self.position.step), why=why, kept=False))

    def holds(self, key: str) -> bool:
        """Tell whether the state before a join is held."""
        return key in self._books

    def hold(self) -> Held:
        """Return the whole state now."""
        return Held(capture(self._subject), self._book(), self.topology_version)

    def fits(self, held: Held) -> bool:
        """Tell whether nothing has joined or left since a state was held."""
        return held.topology_version == self.topology_version

    def put_back(self, held: Held, *, why: str) -> GrowthEvent:
        """Put back a state since which nothing has joined or left; every graft stays."""
        now = self.position.step
        with whole(self._subject):
            restore(self._subject, held.training)
        self._reopen(held.book)
        why += f"; the state of step {self.position.step} was put back" + self._data_note(now - self.position.step)
        return self.events.append(GrowthEvent(step=self.position.step, kind=EventKind.ROLLED_BACK, why=why))

    def _data_note(self, steps: int) -> str:
        """Say what becomes of the batches since the state that was put back."""
        if not steps:
            return ""
        if any(_is_loader(other) for other in self._subject.others):
            return f"; the loader in state= goes back with it, by the batches of {steps} steps"
        return f"; the batches of {steps} steps are not repeated, as no loader is in state="

    def state_dict(self) -> dict[str, Any]:
        """Return the book and the states that are held."""
        return {
            "position": self.position.to_dict(),
            "topology_version": self.topology_version,
            **self.seeds.state_dict(),
            "held": {key: Held(snapshot, self._books[key]).to_dict() for key, snapshot in self._surgeon.held.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``; the training itself has been restored."""
        self.position = Position.from_dict(state["position"])
        self.topology_version = state["topology_version"]
        self.seeds.load_state_dict(state)
        self._surgeon.held.clear()
        self._books = {}
        for key, saved in state["held"].items():
            held = Held.from_dict(saved)
            self._surgeon.held[key], self._books[key] = held.training, held.book

    # -- joining -----------------------------------------------------------------------------------------------------

    def _opened(
        self,
        decision: AdaptationDecision,
        ready: ReadyKernel,
        newborn: Newborn,
        before: float,
        *,
        learned: Apprentice | None,
    ) -> GrowthEvent:
        slot = newborn.slot
        why = decision.reason if learned is None else f"{decision.reason}; it learned apart for {learned.taken} steps"
        params = sum(parameter.numel() for parameter in newborn.parameters.values())
        event = self.events.append(
            GrowthEvent(
                step=self.position.step, kind=EventKind.GRAFTED, why=why, slot=slot,
                seed_idx=newborn.seed_idx, blueprint=ready.blueprint or decision.blueprint or "", kernel_id=ready.kernel_id,
                decision_id=decision.decision_id, added_params=params, added_ratio=params / self.host_params,
                evidence=decision.evidence,
            )
        )  # fmt: skip
        flops = self.placement.place(slot).price(newborn.kernel.ir).flops
        boundary = self.position.boundary
        trial = Trial(event, params, flops, ready.latency_ms, boundary, boundary + self._patience(), before)
        if learned is not None:
            trial.first_alpha = strength(self.model, *trial.place)
            trial.blend_steps = self._blend_steps
        self.position.trials[event.decision_id] = trial
        self.position.grafts.append(self.position.step)
        self._topology_changed()
        return event

    @property
    def _blend_steps(self) -> int:
        """Steps over which the strength of what learned apart rises."""
        return max(1, self._config.settle_boundaries) * self._config.every

    def _patience(self) -> int:
        """Boundaries from a join to its verdict."""
        config = self._config
        if config.steps is None:
            return config.open_evaluation_boundaries
        left = max(0, config.steps - self.position.step) / config.every
        return max(config.fewest_evaluation_boundaries, math.ceil(config.evaluation_share * left))

    # -- verdicts ----------------------------------------------------------------------------------------------------

    def _advance(self, trial: Trial, now: float, *, last: bool) -> list[GrowthEvent]:
        seed, step = self.seeds.of(*trial.place), self.position.step
        age = self.position.boundary - trial.boundary
        if seed.state is SeedState.BLENDING and age >= self._config.settle_boundaries:
            seed.move(SeedState.HOLDING, step=step)
        if seed.state is not SeedState.HOLDING or not (last or self.position.boundary >= trial.due):
            return []
        seed.move(SeedState.EVALUATING, step=step)
        found = self._control.found(trial.key) if math.isfinite(now) else None
        if found is None:
            control = placebo(self.position.losses, self.position.changes, length=max(1, age))
            found = judge(trial.before, now, control)
        if found.harmful:
            return [self._culled(trial, seed, found, put_back=self._config.on_cull is OnCull.RESTORE)]
        return [self._kept(trial, seed, found)]

    def _kept(self, trial: Trial, seed: Seed, found: Judgement) -> GrowthEvent:
        seed.move(SeedState.FOSSILIZED, step=self.position.step)
        trial.judged = True
        self._control.left(trial.key)
        self._report(trial, Verdict.KEPT, found)
        return self._verdict(trial, EventKind.KEPT, found, found.why)

    def _culled(self, trial: Trial, seed: Seed, found: Judgement, *, put_back: bool) -> GrowthEvent:
        with self.incubator.kept():
            restored = self._surgeon.cull(Cut(*trial.place), key=trial.key, put_back=put_back)
        seed.move(SeedState.CULLED, step=self.position.step)
        self._books.pop(trial.key, None)
        self.position.trials.pop(trial.key, None)
        self.seeds.rest(seed, self.position)
        self._topology_changed()
        self._report(trial, Verdict.CULLED, found)
        after = "the state before the join was restored" if restored else "training goes on without it"
        return self._verdict(trial, EventKind.CULLED, found, f"{found.why}; {after}")

    def _verdict(self, trial: Trial, kind: EventKind, found: Judgement, why: str) -> GrowthEvent:
        event = _of(trial.event, kind, self.position.step)
        kept = kind is EventKind.KEPT
        return self.events.append(replace(event, why=why, gain=found.gain, gain_error=found.error, kept=kept))

    def _report(self, trial: Trial, verdict: Verdict, found: Judgement | None) -> None:
        slot, seed_idx = trial.place
        self.outcomes.append(
            Outcome(
                decision_id=trial.key, run_id=self.run_id, slot=slot, seed_idx=seed_idx,
                blueprint=trial.event.blueprint, kernel_id=trial.event.kernel_id, verdict=verdict,
                gain=None if found is None else found.gain, gain_error=None if found is None else found.error,
                params=trial.params, steps=max(0, self.position.step - trial.event.step),
            )
        )  # fmt: skip

    def _inherit(self) -> None:
        """Let strengths that an earlier run left on their way rise on."""
        present = {(e.slot, e.seed_idx): strength(self.model, e.slot, e.seed_idx) for e in topology(self.model)}
        self.position.inherited = tuple(
            Rise(*place, 0, alpha, math.ceil((1.0 - alpha) * self._blend_steps))
            for place, alpha in present.items()
            if 0.0 < alpha < 1.0  # 0 is an ablation
        )

    # -- the book ----------------------------------------------------------------------------------------------------

    def _book(self) -> Book:
        return Book(self.position.copy(), self.seeds.copies())

    def _reopen(self, book: Book, *, keep: Seed | None = None) -> None:
        """Take the position and seeds of a book; locks and embargoes that came since stay, but where a graft is back."""
        rewound = self.position.boundary - book.position.boundary
        self.position = book.position.copy()
        joined = {(entry.slot, entry.seed_idx) for entry in topology(self.model)}
        self.seeds.reopen(book.seeds, rewound=rewound, joined=joined, keep=keep)
        self._books = {key: self._books[key] for key in self._surgeon.held}
        self._drop_ended()
        self._topology_changed()

    def _drop_ended(self) -> None:
        """Let nothing learn apart whose incubation has ended since the state that was put back."""
        for place, apprentice in list(self.incubator.apprentices.items()):
            if self.seeds.of(*place).state is not SeedState.TRAINING:
                self.incubator.release(apprentice)

    def _books_from(self, key: str) -> set[str]:
        keys = list(self._books)
        return set(keys[keys.index(key) :])

    def _topology_changed(self) -> None:
        self.topology_version += 1
        self._control.void()
        self.position.changed()


def _of(event: GrowthEvent, kind: EventKind, step: int) -> GrowthEvent:
    """Return a new event about the same graft."""
    return replace(event, kind=kind, step=step, event_id=new_id("event"), evidence=())


def _is_loader(other: object) -> bool:
    return any(hasattr(other, name) for name in ("__iter__", "__next__", "next"))
