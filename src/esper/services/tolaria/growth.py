"""What ``esper.attach`` returns: a training that grows."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer

from esper.contracts.adaptation import Candidate
from esper.errors import ConfigError
from esper.kasmina import placement_of
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.config import GrowthConfig, check_incubation
from esper.services.tolaria.distributed.formation import check_apart
from esper.services.tolaria.engine import Engine
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.gradients import Waiting
from esper.services.tolaria.handover import Handover
from esper.services.tolaria.newborn_rate import NewbornRates
from esper.services.tolaria.observation import Observer
from esper.services.tolaria.platform import Parts
from esper.services.tolaria.run_state import RunState
from esper.services.tolaria.shrinking import Rent
from esper.services.tolaria.snapshot import Subject, digest

STEERED: WeakSet[Optimizer] = WeakSet()
"""Optimizers of the runs that are attached in this process."""


class Growth:
    """A training that grows.

    ```python
    for x, y in batches:
        loss = loss_fn(model(x), y); loss.backward(); optimizer.step(); optimizer.zero_grad()
        for event in growth.step(loss):
            print(event)
    ```

    Attributes:
        run_id: Names the run.
        events: What happened, in order.
    """

    def __init__(
        self, subject: Subject, parts: Parts, observer: Observer, budget: Budget, config: GrowthConfig
    ) -> None:
        self.run_id = parts.folder.run_id
        self._parts, self._every = parts, config.every
        self._engine = Engine(subject, parts, observer, budget, config)
        self._subject = self._engine.subject
        self.events = self._engine.events
        self._placement = placement_of(subject.model)
        self._handover = Handover()
        self._rates = NewbornRates(subject.optimizer)
        self._waiting = Waiting(subject.model, subject.optimizer)
        self._state = RunState(self._engine, self._waiting, self._rates)
        try:
            self._engine.grafting.request_kernels()
            self._engine.reports.manifest()
        except BaseException:
            observer.close()
            self._rates.close()
            raise
        self._placement.grower = self
        STEERED.add(subject.optimizer)

    def step(self, loss: Tensor | float | None = None) -> list[GrowthEvent]:
        """Take note of one optimizer step; at a boundary observe, decide, graft, evaluate, keep or undo.

        Args:
            loss: The step's training loss; read once per boundary, never synchronised in between.

        Returns:
            What happened; between boundaries that is nothing, or what cannot wait for the next one.

        Raises:
            ConfigError: If ``loss`` is no scalar, ``validate`` or ``probe`` does not return what it must, or the run is closed.
        """
        value = None if loss is None else _scalar(loss)
        self._check_open()
        self._rates.settle()
        self._waiting.used()
        self._handover.take()
        position = self._engine.trials.position
        position.step += 1
        self._engine.spent_steps += 1
        self._engine.observer.step(position.step, value)
        events = self._engine.between(value)
        undone = any(event.kind is EventKind.ROLLED_BACK for event in events)
        events += [] if undone or position.step % self._every else self._engine.boundary()
        self._engine.watch_next()
        return events

    def propose(self) -> tuple[Candidate, ...]:
        """Return every graft that could be made: its price, its score, and what speaks against it now."""
        return self._engine.candidates()

    def graft(self, slot: str, blueprint: str, *, incubate: int = 0) -> GrowthEvent:
        """Graft a blueprint by hand, now; waits for its kernel where the forge is not done.

        Args:
            slot: Name of the slot.
            blueprint: Name of the blueprint.
            incubate: Optimizer steps that it first learns apart, while the host computes and learns as if it were not there;
                it joins at the first boundary after them. 0 joins it at once.

        Raises:
            ConfigError: If ``incubate`` is no number of steps.
            NotFound: If there is no such slot, or the blueprint does not fit it.
            KernelRejected: If the forge refused it.
            GraftFailed: If it cannot be joined; the host was restored.
        """
        self._check_open()
        self._rates.settle()
        check_incubation(incubate)
        check_apart(self._subject.team, incubate)
        return self._engine.grafting.by_hand(slot, blueprint, incubate=incubate)

    async def graft_kernel(self, layer_name: str, seed_idx: int, kernel_id: str) -> None:
        """Graft any validated kernel of the library; ``model.load_kernel`` comes here while a run is attached.

        Where another thread trains, the graft joins after that thread's next step.
        """
        self._check_open()
        if self._subject.team.size > 1:
            raise ConfigError(
                "load_kernel on one of several ranks",
                why="a graft must join on every rank at the same step",
                todo="call growth.graft(slot, blueprint) on every rank",
                code="ESP-2144",
            )
        ready = await self._engine.grafting.kernel_for(layer_name, kernel_id)
        joined = self._handover.ask(lambda: self._engine.grafting.now(layer_name, seed_idx, ready))
        await asyncio.wrap_future(joined)

    def rollback(self, event: GrowthEvent) -> GrowthEvent:
        """Undo a graft and everything since: model, optimizer, schedule, generators and ``state=``, to the bit.

        One that still learns apart is withdrawn, and nothing else changes.

        Args:
            event: The event of its joining, or of its incubation.

        Raises:
            NotFound: If the state before that join is not held any more.
        """
        self._check_open()
        self._subject.team.agree("growth.rollback", event.decision_id)
        trials = self._engine.trials
        apprentice = trials.incubator.apprentices.get((event.slot, event.seed_idx))
        if apprentice is not None and apprentice.decision.decision_id == event.decision_id:
            return self._engine.grafting.incubations.withdraw(apprentice, why="by hand")
        undone = trials.roll_back(event, why="by hand")
        self._engine.start_anew()
        self._engine.reports.outcomes()
        return undone

    def shrink(self, rent: Rent | None = None) -> list[GrowthEvent]:
        """Let grafts leave that bring less than they cost; see `esper.Rent`. Best at the end of a training, or at a plateau.

        Each graft that was kept is left out of a held-out evaluation for a moment; the one that owes most leaves, and the others
        are looked at again, until every one that is left earns its rent. Those on trial are not touched.

        Args:
            rent: What a graft must bring for what it costs.

        Returns:
            One event for each graft that left, with what it was worth.

        Raises:
            ConfigError: If ``validate`` returns one loss only.
        """
        self._check_open()
        self._rates.settle()
        self._subject.team.agree("growth.shrink", self._engine.trials.position.step)
        return self._engine.shrink(rent or Rent())

    def before_graft(self, act: Callable[[], None]) -> None:
        """Have ``act`` called right before each graft joins, when ``state_dict`` still is that of the training without it."""
        self._engine.grafting.before_join = act

    def unlock(self, slot: str, seed_idx: int = 0) -> None:
        """Let a slot that a rollback locked be grown again.

        Raises:
            NotFound: If there is no such slot.
            IllegalTransition: If it is not locked.
        """
        trials = self._engine.trials
        trials.seeds.unlock(slot, seed_idx, trials.position)

    def digest(self) -> str:
        """Return one SHA-256 over every parameter, buffer and optimizer moment: equal states, equal digests."""
        return digest(self._subject)

    def state_dict(self, *, copy: bool = True) -> dict[str, Any]:
        """Return all that a resumed run needs, model and optimizer included, as plain containers and tensors.

        Of several processes each calls it; what one of them returns serves all, unless their parameters are sharded.

        Args:
            copy: Whether the tensors are copies. Otherwise they are the training's own, which the next step changes: to be
                handed on at once, as to ``CheckpointManager.save``, which takes a copy itself.
        """
        return self._state.taken(copy=copy)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``: topology first, then every value, to the bit.

        Args:
            state: Of a run with the same host, optimizer, schedule and ``state=``.

        Raises:
            ConfigError: If it was written by a version that this one does not know, belongs to another training, or is
                damaged; the training is left as it was.
        """
        self._state.put(state)

    def close(self) -> None:
        """End the run's services; the model stays as it is, and may be attached again.

        Raises:
            DeadlineExceeded: If they do not take what happened last; they are ended all the same.
        """
        if self._placement.grower is not self:
            return
        self._placement.grower = None
        STEERED.discard(self._subject.optimizer)
        self._engine.observer.close()
        self._engine.grafting.incubations.end()
        self._rates.close()
        self._engine.consultation.void()
        self._handover.close()
        try:
            self._engine.reports.outcomes()
            self._parts.platform.bridge.flush()
        finally:
            self._parts.platform.close()

    @property
    def graft_due(self) -> bool:
        """Whether a graft is to join at the end of the next step, as far as is known: the moment to save the last good state."""
        return self._engine.graft_due

    @property
    def spent_steps(self) -> int:
        """Optimizer steps taken, those of undone grafts included."""
        return self._engine.spent_steps

    @property
    def planned_step(self) -> int:
        """Optimizer steps on the way to the planned length; a rollback takes its own back, a cull does not."""
        return self._engine.trials.position.step

    @property
    def waits(self) -> int:
        """Calls that blocked training for over 1 ms, without those that ``late="wait"`` asked for."""
        return self._parts.platform.bridge.waits.unwanted

    @property
    def late_waits(self) -> int:
        """Waits that ``late="wait"`` or a graft by hand asked for."""
        return self._parts.platform.bridge.waits.deliberate

    @property
    def flops(self) -> dict[str, int]:
        """Floating-point operations that Esper itself spent: evaluation, bottleneck statistics, and a trainer's twins."""
        observer = self._engine.observer
        own = {"evaluation": observer.held_out.spent_flops, "statistics": observer.statistics_flops}
        return {**own, **self._parts.control.flops}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """What went on in the background: under ``run`` what was dropped, failed, not asked, refused or came twice, then
        messages by kind.
        """
        bridge = self._parts.platform.bridge
        run = {
            "dropped": bridge.dropped,
            "failures": bridge.failed,
            "unasked": self._engine.consultation.unasked_count,
            "refused": self._engine.decisions.refused,
            "doubled": self._engine.decisions.doubled,
            "unwritten": self.events.unwritten,
        }
        return {"run": run, **self._parts.platform.counts()}

    def _check_open(self) -> None:
        if self._placement.grower is not self:
            raise ConfigError("this run is closed", todo="attach again to go on", code="ESP-2118")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _scalar(loss: Tensor | float) -> Tensor:
    if isinstance(loss, (int, float)) or (isinstance(loss, Tensor) and loss.numel() == 1):
        return torch.as_tensor(loss).reshape(())
    found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    raise ConfigError(f"loss is {found}", todo="give growth.step the scalar training loss of the step", code="ESP-2123")
