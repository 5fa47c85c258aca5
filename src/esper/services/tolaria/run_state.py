"""The whole state of an attached run: taken as plain data, and put into a run that goes on from it."""

from typing import Any

from esper.services.tolaria.distributed.partition import with_all_moments
from esper.services.tolaria.distributed.shares import with_own_share, with_shares
from esper.services.tolaria.engine import Engine
from esper.services.tolaria.events import GrowthEvent
from esper.services.tolaria.gradients import GRADIENTS, Waiting
from esper.services.tolaria.newborn_rate import NewbornRates
from esper.services.tolaria.resuming import STATE_VERSION, check_fit, described, not_taken
from esper.services.tolaria.snapshot import Snapshot, capture, put_back, restore


class RunState:
    """Takes and puts the state of one run.

    Args:
        engine: The run, with its training.
        waiting: Gradients that wait for the rest of their step.
        rates: Of newborns; they are settled before a state is taken.
    """

    def __init__(self, engine: Engine, waiting: Waiting, rates: NewbornRates) -> None:
        self._engine, self._subject = engine, engine.subject
        self._waiting, self._rates = waiting, rates

    def taken(self, *, copy: bool = True) -> dict[str, Any]:
        """Return the state, with what only other processes have; collective then.

        Args:
            copy: Whether the tensors are copies.
        """
        team = self._subject.team
        return with_shares(team, with_all_moments(team, self._subject.optimizer, self._own(copy=copy)))

    def put(self, state: dict[str, Any]) -> None:
        """Go on from a state: topology first, then every value, to the bit.

        Raises:
            ConfigError: If it does not fit or is damaged; the training is left as it was.
        """
        check_fit(self._subject, state)
        before = self._own()
        try:
            self._put(with_own_share(self._subject.team, state))
        except BaseException as error:
            put_back(self._subject, Snapshot.from_dict(before["training"]))
            self._waiting.load_state_dict(before["training"][GRADIENTS])
            self._put_book(before)
            if isinstance(error, (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)):
                raise not_taken(error) from error
            raise
        engine = self._engine
        if (scheduled := engine.consultation.scheduled) is not None:
            engine.grafting.fetch(scheduled.decision)  # the run that was saved had it
        engine.reports.manifest()

    def _own(self, *, copy: bool = True) -> dict[str, Any]:
        """Return the state of this process."""
        engine = self._engine
        self._rates.settle()
        engine.consultation.settle()
        training = {**capture(self._subject, copy=copy).to_dict(), GRADIENTS: self._waiting.state_dict(copy=copy)}
        return {
            "version": STATE_VERSION,
            "subject": described(self._subject),
            "spent_steps": engine.spent_steps,
            "training": training,
            "trials": engine.trials.state_dict(),
            "observer": engine.observer.state_dict(copy=copy),
            "consultation": engine.consultation.state_dict(),
            "engine": engine.state_dict(),
            "events": [event.to_json() for event in engine.events],
        }

    def _put(self, state: dict[str, Any]) -> None:
        """Put everything to ``state``; what happened is added to the log last, as it is never taken back."""
        events = [GrowthEvent.from_json(event) for event in state["events"]]
        restore(self._subject, Snapshot.from_dict(state["training"]))
        self._waiting.load_state_dict(state["training"].get(GRADIENTS, {}))
        self._put_book(state)
        self._engine.events.extend(events)

    def _put_book(self, state: dict[str, Any]) -> None:
        """Put everything but the training and the log to ``state``."""
        engine = self._engine
        engine.trials.load_state_dict(state["trials"])
        engine.observer.load_state_dict(state["observer"])
        engine.consultation.load_state_dict(state["consultation"])
        engine.spent_steps = state["spent_steps"]
        engine.load_state_dict(state["engine"])
        engine.watch_next(state["observer"].get("watched", {}))
