"""What the controller has learned from its grafts, run by run and bounded."""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from esper.contracts.adaptation import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_RUNS = 256
"""Runs that are remembered; the one that was heard of longest ago is forgotten first."""


@dataclass(frozen=True)
class AdvisorStatus:
    """What an advisor has learned so far.

    Attributes:
        version: Grows by one with every outcome that was taken in.
        verdicts: Outcomes by verdict.
        measured: Outcomes whose gain was measured.
        gain_sum: Sum of those gains, in the unit of the loss.
        gains: The same by blueprint.
    """

    version: int
    verdicts: "Mapping[Verdict, int]"
    measured: int
    gain_sum: float
    gains: "Mapping[str, float]"

    @property
    def kept(self) -> int:
        """Grafts that stayed."""
        return self.verdicts.get(Verdict.KEPT, 0)

    @property
    def culled(self) -> int:
        """Grafts that did clear harm."""
        return self.verdicts.get(Verdict.CULLED, 0)


@dataclass
class _Run:
    seen: set[str] = field(default_factory=set)
    undone: set[tuple[str, str]] = field(default_factory=set)


class Experience:
    """Outcomes, each taken in once."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._version = self._measured = 0
        self._verdicts: Counter[Verdict] = Counter()
        self._gains: dict[str, float] = {}

    def add(self, outcome: Outcome) -> bool:
        """Take an outcome in.

        Returns:
            Whether it was news: the same verdict on the same decision counts once.
        """
        run = self._run(outcome.run_id)
        key = f"{outcome.decision_id}:{outcome.verdict}"
        if key in run.seen:
            return False
        run.seen.add(key)
        self._version += 1
        self._verdicts[outcome.verdict] += 1
        if outcome.verdict in (Verdict.CULLED, Verdict.ROLLED_BACK):  # what was withdrawn says nothing of its place
            run.undone.add((outcome.slot, outcome.blueprint))
        if outcome.gain is not None:
            self._measured += 1
            self._gains[outcome.blueprint] = self._gains.get(outcome.blueprint, 0.0) + outcome.gain
        return True

    def undone(self, run_id: str) -> frozenset[tuple[str, str]]:
        """Return the slots and blueprints of a run whose graft did not stay."""
        run = self._runs.get(run_id)
        return frozenset() if run is None else frozenset(run.undone)

    def status(self) -> AdvisorStatus:
        """Return what was learned."""
        return AdvisorStatus(
            version=self._version,
            verdicts=MappingProxyType(dict(self._verdicts)),
            measured=self._measured,
            gain_sum=sum(self._gains.values()),
            gains=MappingProxyType(dict(self._gains)),
        )

    def _run(self, run_id: str) -> _Run:
        run = self._runs.setdefault(run_id, _Run())
        self._runs.move_to_end(run_id)
        if len(self._runs) > MOST_RUNS:
            self._runs.popitem(last=False)
        return run
