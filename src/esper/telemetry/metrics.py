"""Every metric, declared once; label values come from closed sets or are bounded."""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter

OTHER: Final = "other"
"""Stands for every label value beyond the first so many."""
MOST_LABELS = 32
"""Values of one open label that are told apart; the closed sets of this project have fewer than ten."""


class BoundedLabel:
    """Values of a label that others choose, kept to a number of them.

    Args:
        most: Values that are told apart, the first to come; the rest are ``other``.
    """

    def __init__(self, most: int = MOST_LABELS) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, value: str) -> str:
        """Return the value itself while there is room, ``other`` afterwards."""
        if len(self._known) < self._most:
            self._known.add(value)
        return value if value in self._known else OTHER


class Metrics:
    """The metrics of one process or one run.

    Args:
        registry: Where they are collected; a new one where it is left out. The global one is never touched.

    Attributes:
        registry: Where they are collected.
        messages: Messages that were read from the bus.
        failures: Tries at a message that failed, and streams that could not be read.
        health_signals: Health signals; state is ``finite`` or ``nonfinite``.
        decisions: Decisions of the controller, "none" included.
        adaptations: Decisions to change the model, by what they ask for and the rule that chose.
        compilations: What the forge announced.
        outcomes: Verdicts on grafts.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.messages = self._counter("esper_nissa_messages_total", "Messages read from the bus.", "topic")
        self.failures = self._counter(
            "esper_nissa_failures_total", "Failed tries at messages, and streams that could not be read.", "topic"
        )
        self.health_signals = self._counter("esper_kasmina_health_signals_total", "Health signals.", "state")
        self.decisions = self._counter("esper_tamiyo_decisions_total", "Decisions, none included.", "action")
        self.adaptations = self._counter("esper_adaptations_total", "Decisions to change a model.", "type", "strategy")
        self.compilations = self._counter("esper_tezzeret_compilations_total", "Announcements of the forge.", "status")
        self.outcomes = self._counter("esper_tolaria_outcomes_total", "Verdicts on grafts.", "verdict")

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(name, told, labels, registry=self.registry)


def counted(counter: Counter, label: str) -> dict[str, int]:
    """Return what a counter has counted, by the values of one label; other labels are summed over."""
    sums: dict[str, int] = {}
    for value, amount in _samples(counter, label):
        sums[value] = sums.get(value, 0) + int(amount)
    return dict(sorted(sums.items()))


def _samples(counter: Counter, label: str) -> Iterator[tuple[str, float]]:
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                yield sample.labels[label], sample.value
