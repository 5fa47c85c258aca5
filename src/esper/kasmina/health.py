"""Health of every slot, read from gradients and weights in the optimizer's pre-step: no forward hook."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.contracts.health import HealthSignal
from esper.detect.health import PlaceHistory
from esper.kasmina.placement import placement_of
from esper.kasmina.shares import local

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
        self._hook = optimizer.register_step_pre_hook(self._before_step)

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

    def _before_step(self, _optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Measure now, or, where the step is given a closure that computes the gradients, right after that."""
        if not self._armed:
            return None
        self._armed = False
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._measure()
            return None

        def measured() -> Any:
            loss = closure()
            self._measure()
            return loss

        return args[:1], {**kwargs, "closure": measured}

    @torch.no_grad()
    def _measure(self) -> None:
        for name, place in placement_of(self._model).slots.items():
            trained = [p for p in place.module.parameters() if p.grad is not None]
            if trained:
                gradient = _norm(_dense(p.grad) for p in trained if p.grad is not None)
                self._measured[name] = {"grad_norm": gradient, "weight_norm": _norm(trained)}


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """Return the Euclidean norm over all tensors, of whatever types and devices they are."""
    norms = torch._foreach_norm([local(tensor) for tensor in tensors])
    total: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms]))
    return total


def _dense(gradient: Tensor) -> Tensor:
    """Return the values of a gradient, which an embedding may hold sparsely."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


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
