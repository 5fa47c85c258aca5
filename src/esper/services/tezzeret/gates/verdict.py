"""Collecting what a gate finds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from esper.contracts.kernel import GateResult
from esper.services.tezzeret.gates.trial import Trial

_TOLD = 8
"""Reasons that a gate tells; the first ones tell most."""

Gate: TypeAlias = Callable[[Trial], GateResult]


@dataclass
class Findings:
    """Reasons against a kernel, and what was measured; a kernel passes where there is no reason."""

    reasons: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)

    def expect(self, holds: bool, reason: str) -> None:
        """Note a reason where something does not hold."""
        if not holds:
            self.reasons.append(reason)

    def measure(self, name: str, value: float) -> None:
        """Keep a number; one that is not finite is a reason instead, as no record carries it."""
        if math.isfinite(value):
            self.metrics[name] = value
        else:
            self.reasons.append(f"{name} is not finite")

    def result(self) -> GateResult:
        """Return the gate's answer."""
        told, untold = self.reasons[:_TOLD], len(self.reasons) - _TOLD
        reasons = (*told, f"and {untold} more") if untold > 0 else tuple(told)
        return GateResult(passed=not self.reasons, metrics=self.metrics, reasons=reasons)


class OutOfMemory(Exception):
    """A kernel needed more memory than this process may have; the process should end."""


def passed_through(gate: Gate, trial: Trial) -> GateResult:
    """Run a gate; a kernel that raises stays outside.

    Raises:
        OutOfMemory: If memory ran out.
    """
    try:
        return gate(trial)
    except Exception as error:
        if is_exhaustion(error):
            raise OutOfMemory(f"{gate.__name__}: {error}") from error
        reason = f"{gate.__name__} could not be finished: {type(error).__name__}: {str(error)[:300]}"
        return GateResult(passed=False, reasons=(reason,))


def is_exhaustion(error: BaseException) -> bool:
    """Say whether memory ran out; torch's allocator of the CPU says so in words only."""
    if isinstance(error, MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in said or "std::bad_alloc" in said)
