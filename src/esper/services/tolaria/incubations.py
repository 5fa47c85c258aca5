"""Kernels that learn apart, from the decision to their joining or their end; the host never meets one that fails (law 3)."""

from esper.contracts.adaptation import AdaptationDecision, Outcome, Verdict
from esper.errors import EsperError
from esper.kasmina import SeedState
from esper.kasmina.passage import Passage
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.incubator import Apprentice
from esper.services.tolaria.kernels import ReadyKernel
from esper.services.tolaria.trials import Trials


class Incubations:
    """Keeps the book of what learns apart.

    Args:
        trials: The book of the run, and the incubator.
    """

    def __init__(self, trials: Trials) -> None:
        self._trials, self._incubator = trials, trials.incubator

    def begin(self, decision: AdaptationDecision, ready: ReadyKernel, *, steps: int) -> GrowthEvent:
        """Let a kernel learn apart before it joins; nothing that it does reaches the host.

        Args:
            decision: Names slot, seed and blueprint; its seed is germinated.
            ready: The kernel.
            steps: Optimizer steps; it joins at the first boundary after them.

        Returns:
            The event: incubating, or cancelled with the reason.
        """
        trials = self._trials
        seed = trials.seeds.of(str(decision.target_layer), decision.seed_idx)
        seed.move(SeedState.LOADED, step=trials.position.step)
        try:
            apprentice = self._incubator.take_in(decision, ready, steps=steps)
        except EsperError as error:
            return trials.cancel(decision, why=str(error))
        seed.move(SeedState.TRAINING, step=trials.position.step)
        own = type(apprentice.optimizer).__name__
        why = f"{decision.reason}; it learns apart for {steps} steps by {own}, and joins at the boundary after them"
        return trials.note(EventKind.INCUBATING, decision, why=why)

    def step(self, *, look: bool) -> list[GrowthEvent]:
        """Take one optimizer step for everything that learns apart.

        Args:
            look: Whether to wait for what an accelerator knows.

        Returns:
            What became of those that cannot go on.
        """
        if not self._incubator.apprentices:
            return []
        return [self._failed(apprentice, why) for apprentice, why in self._incubator.step(look=look)]

    def graduate(self, apprentice: Apprentice, *, before: float, seen: Passage | None) -> GrowthEvent:
        """Let a kernel join, at a strength that rises from almost nothing; see ``Trials.join``."""
        learned = self._incubator.learned(apprentice)
        self._incubator.release(apprentice)
        if not learned:
            return self._failed(apprentice, "no gradient reached it")
        return self._trials.join(apprentice.decision, apprentice.ready, before=before, seen=seen, apprentice=apprentice)

    def withdraw(self, apprentice: Apprentice, *, why: str) -> GrowthEvent:
        """End an incubation before it joins."""
        self._incubator.release(apprentice)
        return self._trials.cancel(apprentice.decision, why=why)

    def end(self) -> None:
        """Take everything that learns apart out of the model, as the run is closed; a run that resumes has it again."""
        for place, apprentice in list(self._incubator.apprentices.items()):
            self._incubator.release(apprentice)
            self._trials.seeds.dismiss(*place, self._trials.position)

    def _failed(self, apprentice: Apprentice, why: str) -> GrowthEvent:
        """Drop a kernel that cannot learn on, already out of the incubator; the host never met it."""
        decision, trials = apprentice.decision, self._trials
        seed = trials.seeds.of(str(decision.target_layer), decision.seed_idx)
        seed.move(SeedState.CULLED, step=trials.position.step)
        trials.seeds.rest(seed, trials.position)
        trials.outcomes.append(
            Outcome(
                decision_id=decision.decision_id, run_id=trials.run_id, slot=seed.slot, seed_idx=seed.seed_idx,
                blueprint=apprentice.incubation.blueprint, kernel_id=apprentice.ready.kernel_id, verdict=Verdict.CULLED,
                gain=None, gain_error=None, params=sum(p.numel() for p in apprentice.kernel.parameters()),
                steps=apprentice.taken,
            )
        )  # fmt: skip
        return trials.note(EventKind.CULLED, decision, why=f"while it learned apart, {why}", kept=False)
