"""Health of every slot, read from gradients and weights in the optimizer's pre-step: no forward hook."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.health import HealthSignal
from esper.detect.health import PlaceHistory
from esper.kasmina.gradients import before_update, dense, norm
from esper.kasmina.placement import placement_of

Norms: TypeAlias = Callable[[list[float]], list[float]]


class HealthMeter:
    """Measures every slot on one optimizer step, when it was armed.

    Args:
        model: Wrapped model.
        optimizer: Its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._model = model
        self._armed = False
        self._measured: dict[str, dict[str, Tensor]] = {}
        self._histories: defaultdict[str, PlaceHistory] = defaultdict(PlaceHistory)
        self._hook = before_update(optimizer, self._measure)

    def arm(self) -> None:
        """Measure on the next optimizer step."""
        self._armed = True

    def state_dict(self) -> dict[str, Any]:
        """Return the history of each slot that was measured."""
        return {slot: history.to_dict() for slot, history in self._histories.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``; what was to be measured is forgotten."""
        self._armed, self._measured = False, {}
        self._histories.clear()
        self._histories.update({slot: PlaceHistory.from_dict(history) for slot, history in state.items()})

    def read(self, *, run_id: str, step: int, whole: Norms | None = None) -> list[HealthSignal]:
        """Return one signal per slot of what was measured last; the only place that synchronises.

        Args:
            run_id: Names the run.
            step: Of the boundary.
            whole: Makes norms over what all ranks hold of norms over what this one holds, where each has a share.
        """
        taken, self._measured = self._measured, {}
        flat = [float(value) for values in taken.values() for value in values.values()]
        norms = iter(flat if whole is None else whole(flat))
        measured = {slot: {name: next(norms) for name in values} for slot, values in taken.items()}
        now = datetime.now(UTC)
        return [
            _signal(slot, values, self._histories[slot], run_id=run_id, step=step, now=now)
            for slot, values in measured.items()
        ]

    def close(self) -> None:
        """Take the hook away."""
        self._hook.remove()

    @torch.no_grad()
    def _measure(self) -> None:
        if not self._armed:
            return
        self._armed = False
        for name, place in placement_of(self._model).slots.items():
            trained = [p for p in place.module.parameters() if p.grad is not None]
            if trained:
                gradient = norm(dense(p.grad) for p in trained if p.grad is not None)
                self._measured[name] = {"grad_norm": gradient, "weight_norm": norm(trained)}


def _signal(
    slot: str, values: dict[str, float], history: PlaceHistory, *, run_id: str, step: int, now: datetime
) -> HealthSignal:
    metrics = dict(values)
    metrics["grad_to_weight"] = metrics["grad_norm"] / metrics["weight_norm"] if metrics["weight_norm"] else 0.0
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    nonfinite = tuple(sorted(metrics.keys() - finite.keys()))
    return HealthSignal(
        layer_id=slot,
        seed_idx=0,
        timestamp=now,
        metrics=finite,
        health_score=history.observe(finite, nonfinite).score,
        run_id=run_id,
        step=step,
        nonfinite=nonfinite,
    )
