"""The governor: sees a training go wrong, whatever the policy thinks, and takes back the graft that may have done it."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor

from esper.detect.regression import RegressionTest
from esper.errors import NotFound
from esper.services.tolaria.config import GovernorConfig
from esper.services.tolaria.events import EventKind, EventLog, GrowthEvent
from esper.services.tolaria.held import Held
from esper.services.tolaria.losses import LossWatch
from esper.services.tolaria.record import Trial
from esper.services.tolaria.snapshot import Subject
from esper.services.tolaria.soundness import Soundness
from esper.services.tolaria.trials import Trials


class Cause(StrEnum):
    """What went wrong."""

    NOT_FINITE = "not_finite"
    HELD_OUT = "held_out"
    REGRESSION = "regression"


ALONE = "alone"
"""Topic of what is said where no graft can be taken back."""


@dataclass(frozen=True)
class Act:
    """A state that was put back.

    Attributes:
        cause: Why.
        step: At which optimizer step that was found.
        graft: Whether a graft was taken back, rather than the latest good state put back.
    """

    cause: Cause
    step: int
    graft: bool


class Governor:
    """Watches every step; acts only while a graft is held that can be taken back, and says once where none is.

    Who is blamed: the newest open graft whose state before the join is held; should the same come back, the next older
    one; for values that are not finite also grafts that were kept, as such a training is lost otherwise. What comes
    back at the same place after two grafts were taken back for it is no graft's doing: the governor says so and stops.

    Args:
        subject: The training.
        config: How it judges.
        trials: What it may take back.
        events: Where it says what it cannot mend.
        every: Optimizer steps between boundaries.
    """

    def __init__(
        self, subject: Subject, config: GovernorConfig, trials: Trials, events: EventLog, *, every: int
    ) -> None:
        self._team, self._config, self._trials, self._events = subject.team, config, trials, events
        self._every = every
        self._soundness = Soundness(subject)
        self._losses = LossWatch(config.reference_losses)
        self._tests: dict[str, RegressionTest | None] = {}
        self._count = 0
        self._acts: list[Act] = []
        self._said: set[str] = set()
        self._stopped = False
        self._good: Held | None = None

    def step(self, loss: Tensor | None) -> list[GrowthEvent]:
        """Take one optimizer step in, and act at once where it is known to have gone wrong.

        Of several processes none acts alone: they look together, at boundaries.
        """
        self._follow()
        if loss is not None:
            self._losses.add(loss)
        if self._team.size > 1 or not self._losses.glance():
            return []
        return self._examine()

    def boundary(self, held_out: float) -> list[GrowthEvent]:
        """Look at everything: losses, weights and moments, the held-out loss, and whether a graft made it worse.

        Args:
            held_out: Mean held-out loss of the averaged weights now.
        """
        self._follow()
        self._read()
        events = self._examine() or self._examine_held_out(held_out) or self._examine_trend()
        if not events and not self._losses.bad_in_row:
            self._remember()
        return events

    def start_anew(self) -> None:
        """Forget what was seen since a state that was put back; what was done and said stays."""
        self._losses.forget()
        self._tests = {key: test for key, test in self._tests.items() if key in self._trials.position.trials}
        self._good = None

    def state_dict(self) -> dict[str, Any]:
        """Return what it knows."""
        self._read()
        return {
            "losses": self._losses.state_dict(),
            "tests": {key: None if test is None else test.to_dict() for key, test in self._tests.items()},
            "count": self._count,
            "acts": [{**asdict(act), "cause": act.cause.value} for act in self._acts],
            "said": sorted(self._said),
            "stopped": self._stopped,
            "good": None if self._good is None else self._good.to_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self._losses.load_state_dict(state["losses"])
        self._tests = {
            key: None if test is None else RegressionTest.from_dict(test) for key, test in state["tests"].items()
        }
        self._count, self._stopped, self._said = state["count"], state["stopped"], set(state["said"])
        self._acts = [Act(Cause(act["cause"]), act["step"], act["graft"]) for act in state["acts"]]
        self._good = None if state["good"] is None else Held.from_dict(state["good"])

    # -- what is wrong -----------------------------------------------------------------------------------------------

    def _examine(self) -> list[GrowthEvent]:
        """Look at weights and moments, where something hangs on it; a bad loss alone convicts nobody at first."""
        bad = self._losses.bad_in_row
        silent = self._stopped or (not self._held_trials and ALONE in self._said)
        if silent or not self._team.any(bad > 0 or self._held_trials != []):
            return []
        fault = self._soundness.fault()
        lasting = bad >= self._config.patience
        if not self._team.any(fault is not None or lasting):
            return []
        why = f"the last {bad} training losses are not finite" if fault is None else f"{fault} is not finite"
        return self._act(Cause.NOT_FINITE, why, self._held_trials)

    def _examine_held_out(self, held_out: float) -> list[GrowthEvent]:
        if math.isfinite(held_out):
            return []
        blamed = [trial for trial in self._held_trials if not trial.judged and math.isfinite(trial.before)]
        return self._act(Cause.HELD_OUT, "the held-out loss is not finite", blamed)

    def _examine_trend(self) -> list[GrowthEvent]:
        """Look whether the training loss lies lasting above where it lay before a graft; the leader's losses count."""
        open_keys = [trial.key for trial in self._trials.position.open_trials]
        self._tests = {key: test for key, test in self._tests.items() if key in open_keys}
        worse = [key for key, test in self._tests.items() if test is not None and test.look()]
        told = self._team.broadcast("\n".join(worse).encode()).decode().split("\n")
        blamed = [trial for trial in self._held_trials if trial.key in told]
        if told == [""]:
            return []
        why = f"the training loss lies lasting above where it lay before (false alarms: {self._config.false_alarms:g} a run)"
        return self._act(Cause.REGRESSION, why, blamed)

    @property
    def _held_trials(self) -> list[Trial]:
        """Grafts that can be taken back, the open ones first and each kind newest first."""
        held = [t for t in reversed(self._trials.position.trials.values()) if self._trials.holds(t.key)]
        return sorted(held, key=lambda trial: trial.judged)

    # -- what is done ------------------------------------------------------------------------------------------------

    def _act(self, cause: Cause, why: str, blamed: list[Trial]) -> list[GrowthEvent]:
        step = self._trials.position.step
        same = [act for act in self._acts if act.cause is cause and abs(act.step - step) <= self._every]
        if self._stopped:
            return []
        if sum(act.graft for act in same) >= 2:
            self._stopped = True
            return self._say("stopped", f"{why}, as before two grafts were taken back for it: no graft did it")
        if cause is Cause.NOT_FINITE and not same and blamed and (good := self._good) and self._trials.fits(good):
            self._acts.append(Act(cause, step, graft=False))
            return self._undone(lambda: self._trials.put_back(good, why=why))
        if not blamed:
            return self._say(ALONE, f"{why}, and no graft is held that could be taken back; training is left alone")
        self._acts.append(Act(cause, step, graft=True))
        return self._undone(lambda: self._trials.roll_back(blamed[0].event, why=why))

    def _undone(self, put_back: Callable[[], GrowthEvent]) -> list[GrowthEvent]:
        try:
            event = put_back()
        except NotFound:  # between the look and the act nothing can have let go of it
            return self._say("gone", "the state to put back is not held any more")
        return [event]

    def _say(self, topic: str, why: str) -> list[GrowthEvent]:
        if topic in self._said:
            return []
        self._said.add(topic)
        return [self._events.append(GrowthEvent(step=self._trials.position.step, kind=EventKind.DIVERGED, why=why))]

    # -- what is known -----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Begin a test for each graft that has joined since the last step, against the losses before it."""
        for trial in self._trials.position.open_trials:
            if trial.key not in self._tests:
                self._read()
                self._count += 1
                allowed = self._config.false_alarms * 6 / (math.pi * self._count) ** 2  # these sum to false_alarms
                self._tests[trial.key] = RegressionTest.against(
                    list(self._losses.latest), allowed=allowed, margin_ratio=self._config.margin_ratio
                )

    def _read(self) -> None:
        losses = self._losses.read()
        for test in self._tests.values():
            if test is not None:
                test.observe(losses)

    def _remember(self) -> None:
        """Take the state as the latest good one, where that is asked for and a graft is part of it."""
        if self._config.last_known_good and self._trials.position.trials:
            self._good = None  # so that never two are held at once
            self._good = self._trials.hold()
