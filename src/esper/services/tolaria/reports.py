"""What leaves a run: health, outcomes, and the manifest of what is grafted."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from esper.contracts.adaptation import Outcome
from esper.contracts.health import HealthBatch
from esper.contracts.topics import HEALTH, OUTCOMES
from esper.kasmina import topology
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.decisions import Refusal
from esper.services.tolaria.observation import Observation
from esper.services.tolaria.platform import Parts
from esper.services.tolaria.trials import Trials


class Reports:
    """Tells others what happens, without waiting for them; only the process that leads does.

    Args:
        parts: Services and folder.
        trials: The book of the run.
        budget: Limits on what may be added, which the manifest names.

    Attributes:
        alone: Whether the services have ended, so that nobody hears.
        told: Outcomes so far.
    """

    def __init__(self, parts: Parts, trials: Trials, budget: Budget) -> None:
        self.alone = False
        self.told: list[Outcome] = []
        self._platform, self._folder = parts.platform, parts.folder
        self._trials, self._budget = trials, budget

    @property
    def _heard(self) -> bool:
        return self._trials.team.leads and not self.alone

    def health(self, observation: Observation) -> None:
        """Publish the health of every layer; it is dropped where too much is under way."""
        if observation.health and self._heard:
            batch = HealthBatch(run_id=self._trials.run_id, step=observation.point.step, signals=observation.health)
            publishing = self._platform.bus.publish(HEALTH.stream, batch, run_id=self._trials.run_id)
            self._platform.bridge.post(publishing, droppable=True)

    def outcomes(self) -> None:
        """Tell the bus, from which the library has it, and the controller what became of grafts; so does the event log."""
        outcomes, self._trials.outcomes = self._trials.outcomes, []
        self.told += outcomes
        for outcome in outcomes if self._heard else ():
            self._publish(outcome)
            self._platform.bridge.post(self._platform.advisor.learn(outcome))

    def refused(self, refusals: Iterable[Refusal]) -> None:
        """Tell whoever took a decision that it was refused."""
        for refusal in refusals if self._trials.team.leads else ():
            self._publish(refusal.outcome(self._trials.run_id))

    def manifest(self) -> None:
        """Write down what is grafted now."""
        content = {
            "run_id": self._trials.run_id,
            "step": self._trials.position.step,
            "host_params": self._trials.host_params,
            "budget": asdict(self._budget),
            "grafts": [
                {**asdict(entry), "state": self._trials.seeds.of(entry.slot, entry.seed_idx).state.value}
                for entry in topology(self._trials.model)
            ],
        }
        if self.alone or self._platform.running.done():
            self._folder.write_manifest(content)
            return
        self._platform.bridge.post(self._folder.written(content))

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what the controller was told; it learns it again where the run goes on."""
        return [outcome.model_dump(mode="json") for outcome in self.told]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on from ``state_dict``."""
        known, self.told = self.told, [Outcome(**{**outcome, "run_id": self._trials.run_id}) for outcome in state]
        for outcome in [o for o in self.told if o not in known] if self._trials.team.leads else ():
            self._platform.bridge.post(self._platform.advisor.learn(outcome))

    def _publish(self, outcome: Outcome) -> None:
        publishing = self._platform.bus.publish(OUTCOMES.stream, outcome, run_id=self._trials.run_id)
        self._platform.bridge.post(publishing)
