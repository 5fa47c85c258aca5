"""What a run sees of itself between two boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.contracts.adaptation import LossPoint
from esper.contracts.health import HealthSignal
from esper.kasmina import HealthMeter, Signal, placement_of, signal_named
from esper.services.tolaria.averaging import AveragedWeights
from esper.services.tolaria.config import GrowthConfig
from esper.services.tolaria.distributed.agreement import agreed_losses, agreed_window, synchronise_buffers, whole_norms
from esper.services.tolaria.distributed.sharding import settled
from esper.services.tolaria.held_out import HeldOut, Measurement, Validate
from esper.services.tolaria.probing import Probe, probed
from esper.services.tolaria.regions import CompiledRegions, EagerStep
from esper.services.tolaria.snapshot import Subject


@dataclass
class TrainingLoss:
    """Sum of the training losses since the last boundary, kept on their device and never synchronised in between."""

    total: Tensor | None = None
    count: int = 0

    def add(self, loss: Tensor) -> None:
        """Take one loss in, detached."""
        value = loss.detach().to(torch.promote_types(loss.dtype, torch.float32), copy=True)
        self.total = value if self.total is None else self.total + value
        self.count += 1

    def take(self) -> float | None:
        """Return the mean and begin anew; None where nothing was added."""
        mean = None if self.total is None else float(self.total) / self.count
        self.total, self.count = None, 0
        return mean


@dataclass(frozen=True)
class Observation:
    """One boundary's view.

    Attributes:
        point: The losses.
        held_out: Held-out losses of the averaged weights, and what a captured slot returned.
        scores: Score of each slot that was probed, by the signal that the run goes by.
        health: One signal per slot.
    """

    point: LossPoint
    held_out: Measurement
    scores: dict[str, float] = field(default_factory=dict)
    health: tuple[HealthSignal, ...] = ()


class Observer:
    """Watches a training from the outside: losses, averaged weights, health, a signal of each slot.

    Args:
        subject: The training; health is read in the pre-step of its optimizer.
        validate: The user's held-out losses.
        config: Settings of the run.
        run_id: Names the run in health signals.
        probe: The user's probe, on which the signal is measured; without it the training step before a boundary is watched.
        regions: What of the model is compiled; it notes how training calls it on the steps that are measured.
    """

    def __init__(
        self,
        subject: Subject,
        validate: Validate,
        config: GrowthConfig,
        *,
        run_id: str,
        regions: CompiledRegions,
        probe: Probe | None = None,
    ) -> None:
        self.loss = TrainingLoss()
        self.average = AveragedWeights(subject.model)
        self.held_out = HeldOut(validate, subject.model)
        self.statistics_flops = 0
        self._model, self._config, self._run_id = subject.model, config, run_id
        self._optimizer = subject.optimizer
        self._team = subject.team
        self._stride = config.stride
        self._health = HealthMeter(subject.model, subject.optimizer)
        self._probe = probe
        self._watching: Signal | None = None
        self._probes_now = False
        self.regions, self._eager = regions, EagerStep()

    def step(self, step: int, loss: Tensor | None) -> None:
        """Take one optimizer step in.

        Args:
            step: Its number, from 1.
            loss: Its training loss, or None.
        """
        if loss is not None:
            self.loss.add(loss)
        if step % self._stride == 0:
            self.average.update()

    def arm(self, watched: Mapping[str, Any]) -> None:
        """Measure health on the next training step, and the signal of every slot there or at the boundary after it.

        Args:
            watched: What was seen of that step already.
        """
        self._health.arm()
        self._probes_now = placement_of(self._model).ready
        if self._probes_now and self._probe is None and self._watching is None:
            self._watching = self._signal()
            self._watching.load_state_dict(watched)
            self._watching.arm()
            if self._watching.in_forward:
                self.regions.arm()
                self._eager.begin()

    def observe(self, step: int, *, topology_version: int, capture: nn.Module | None) -> Observation:
        """Measure everything at a boundary and begin the next window."""
        train, scores = agreed_window(
            self._team, self.loss.take(), self._scores(), tuple(placement_of(self._model).slots)
        )
        measured = self.measure(topology_version=topology_version, capture=capture)
        self.average.reset()
        point = LossPoint(step=step, train=train, validation=measured.mean)
        health = self._health.read(run_id=self._run_id, step=step, whole=whole_norms(self._team))
        return Observation(point, measured, scores, tuple(health))

    def measure(self, *, topology_version: int | None, capture: nn.Module | None) -> Measurement:
        """Measure the held-out losses of the averaged weights now, the mean of every process's."""
        synchronise_buffers(self._team, self._model)
        with settled(self._team, self._model), self.average.applied():
            synchronise_buffers(self._team, self._model)
            with self._team.together("validating"):
                measured = self.held_out.measure(topology_version=topology_version, capture=capture)
        return agreed_losses(self._team, measured)

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """Return what a resumed run needs to see the same; without ``copy`` with tensors that the next step changes."""
        total = None if self.loss.total is None else self.loss.total.clone()
        return {
            "total": total,
            "count": self.loss.count,
            "average": self.average.state_dict(copy=copy),
            "flops": [self.held_out.spent_flops, self.statistics_flops],
            "counted": self.held_out.counted(),
            "health": self._health.state_dict(),
            "watched": {} if self._watching is None else self._watching.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``; what is measured next is another step than the one that was to be."""
        self._look_away()
        self._watching, self._probes_now = None, False
        self.loss = TrainingLoss(state["total"], state["count"])
        self.average.load_state_dict(state["average"])
        self.held_out.spent_flops, self.statistics_flops = state["flops"]
        self.held_out.take_counted(state.get("counted", []))
        self._health.load_state_dict(state.get("health", {}))

    def close(self) -> None:
        """Remove every hook."""
        self._health.close()
        self._look_away()

    def _scores(self) -> dict[str, float]:
        probes, self._probes_now = self._probes_now, False
        if probes and self._probe is not None:
            self.regions.arm()
            try:
                scores, flops = probed(self._model, self._signal(), self._probe)
            finally:
                self.regions.disarm()
        elif self._watching is not None:
            self._look_away()
            scores, flops = self._watching.read(), self._watching.flops
            self._watching = None
        else:
            return {}
        self.statistics_flops += flops
        return scores

    def _signal(self) -> Signal:
        return signal_named(self._config.signal, self._model, self._optimizer)

    def _look_away(self) -> None:
        """End the watching of a training step."""
        self._eager.end()
        self.regions.disarm()
        if self._watching is not None:
            self._watching.disarm()
