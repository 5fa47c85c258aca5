"""Growth inside ``lightning.pytorch``: one callback.

```python
from esper.integrations.lightning import Growth

growth = Growth(losses=losses, every=200, budget="+30%", module="model")
trainer = lightning.Trainer(callbacks=[growth])
trainer.fit(module, loader, held_out)
```
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from esper.assembly import attach
from esper.errors import ConfigError
from esper.integrations.extras import missing
from esper.integrations.held_out import Losses, held_out
from esper.integrations.options import check_called, checked, part_of, wrapped
from esper.integrations.saved import learn_slots, put_back, regrow, saved_run, share_tensors
from esper.kasmina.discovery import Wanted
from esper.kasmina.placement import CHILD
from esper.kasmina.quiet import preserved_rng
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.distributed.formation import formation_of
from esper.services.tolaria.growth import Growth as Run
from esper.services.tolaria.held_out import Validate
from esper.services.tolaria.snapshot import Stateful, Subject

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import WeightAveraging
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
    from lightning.pytorch.utilities import rank_zero_info
except ImportError as error:
    raise missing("lightning", error) from error

KEY = "esper"
"""Where a checkpoint of Lightning holds the run."""


class Growth(Callback):
    """Lets a LightningModule grow while a ``Trainer`` fits it.

    Boundaries lie between two batches, after the optimizer and the schedule were stepped. A checkpoint that Lightning writes
    holds the run as plain containers and tensors; ``trainer.fit(ckpt_path=...)`` goes on from it as if nothing had happened.

    Args:
        every: Optimizer steps from one boundary to the next.
        budget: As for ``esper.attach``.
        validate: Returns a 1-D tensor of held-out losses for the model that grows. Or else:
        losses: Returns one loss per example for the model that grows and one batch of the trainer's validation loader.
        module: Name of the part that grows, such as ``"model"`` for ``self.model``; the LightningModule itself by default.
        slots: As for ``esper.wrap``.
        example: One input batch of the part that grows, from which shapes are learned before training; by default the
            LightningModule's ``example_input_array`` where it grows itself, otherwise the first batch.
        steps: Planned length of the run in optimizer steps; by default what the trainer plans, where it plans an end.
        state: Whatever else moves with the training; a scaler of mixed precision is added to it.
        options: Further arguments of ``esper.attach``.

    Attributes:
        run: The attached run, with its events, ``graft`` and ``rollback``; None before training.

    Raises:
        ConfigError: If an argument is not known, or neither or both of ``validate`` and ``losses`` are given.
    """

    def __init__(
        self,
        *,
        every: int,
        budget: str | Budget,
        validate: Validate | None = None,
        losses: Losses | None = None,
        module: str | None = None,
        slots: Wanted = "auto",
        example: object = None,
        steps: int | None = None,
        state: Sequence[Stateful] = (),
        **options: Any,
    ) -> None:
        if (validate is None) == (losses is None):
            raise ConfigError(
                "the held-out losses are not given" if validate is None else "validate= and losses= are both given",
                todo="give validate=, a function of the model, or losses=, a function of the model and a batch",
                code="ESP-2462",
            )
        self.run: Run | None = None
        self._validate, self._losses = validate, losses
        self._module, self._slots, self._example = module, slots, example
        self._every, self._budget, self._steps = every, budget, steps
        self._state, self._options = tuple(state), checked(options)
        self._resumed: dict[str, Any] | None = None
        self._micro: list[Tensor] = []
        self._stepped = 0

    # -- before training ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the model its slots, and listen for a checkpoint, whose grafts must be there before its values are."""
        if stage == "fit":
            check_trainer(trainer, pl_module)
        example = self._example
        if example is None and self._module is None:
            example = pl_module.example_input_array
        wrapped(self._target(pl_module), self._slots, example)
        self._resumed = None
        _hear_loading(pl_module, self._on_checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizer and the schedule the groups of a saved run, before Lightning loads both by position.

        The DDP knows the host alone then; what averages the gradients of newborns must see that before a graft is back.
        """
        _stop_hearing(pl_module)
        check_optimizers(trainer)
        if self._resumed is not None:
            put_back(self._subject(trainer, pl_module), self._resumed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the run; where one was saved, go on from it: by name, and after all that Lightning loaded by position."""
        model, subject = self._target(pl_module), self._subject(trainer, pl_module)
        run = attach(
            model, subject.optimizer, validate=self._held_out(trainer), every=self._every,
            steps=self._planned(trainer), scheduler=subject.schedule, state=subject.others, budget=self._budget,
            ddp=_ddp_of(trainer), **self._options,
        )  # fmt: skip
        if self._resumed is not None:
            saved, self._resumed = self._resumed, None
            # The loader of a new epoch has drawn its order from the generators already, as in the run that was saved.
            drawn: AbstractContextManager[None] = preserved_rng() if saved["epoch_ended"] else nullcontext()
            with drawn:
                run.load_state_dict(saved["growth"])
        self.run, self._micro, self._stepped = run, [], trainer.global_step

    # -- training ----------------------------------------------------------------------------------------------------

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Pass one step where the optimizer took one; batches that only accumulate do not count."""
        if self.run is None:
            return
        if isinstance(outputs, Mapping) and isinstance(outputs.get("loss"), Tensor):
            self._micro.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._stepped:
            return
        check_called(self._target(pl_module))
        self._stepped = trainer.global_step
        losses, self._micro = self._micro, []
        for event in self.run.step(sum(losses[1:], losses[0]) / len(losses) if losses else None):
            rank_zero_info(str(event))

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return a mark, so that Lightning misses this callback where a checkpoint is resumed without it."""
        return {} if self.run is None else {"run_id": self.run.run_id}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the run into a checkpoint; what the model and the optimizer have there already is written once."""
        if self.run is None:
            return
        saved = saved_run(self.run, self._target(pl_module))
        share_tensors(saved["growth"], self._subject(trainer, pl_module))
        checkpoint[KEY] = {**saved, "epoch_ended": trainer.is_last_batch}

    def _on_checkpoint(self, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if KEY not in checkpoint:
            return
        self._resumed = checkpoint[KEY]
        if not (module.trainer.training and _is_ddp(module.trainer)):
            regrow(self._target(module), checkpoint[KEY])
            return
        # DDP is made next. A graft that it knew could not be undone, so the host comes first and the grafts on_fit_start.
        learn_slots(self._target(module), checkpoint[KEY])
        values = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: values[name] for name in values if CHILD not in name.split(".")}

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the run; the model stays as it is."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the run; the model stays as it is."""
        self._close(pl_module)

    def _close(self, module: LightningModule) -> None:
        _stop_hearing(module)
        if self.run is not None:
            self.run.close()

    # -- parts -------------------------------------------------------------------------------------------------------

    def _target(self, module: LightningModule) -> nn.Module:
        return part_of(module, self._module)

    def _subject(self, trainer: Trainer, module: LightningModule) -> Subject:
        configs = trainer.lr_scheduler_configs
        schedule = configs[0].scheduler if configs else None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        others = self._state if scaler is None else (*self._state, scaler)
        formation = formation_of(self._target(module), _ddp_of(trainer))
        return Subject(formation.model, trainer.optimizers[0], schedule, others, formation.followers(), formation.team)

    def _planned(self, trainer: Trainer) -> int | None:
        planned = trainer.estimated_stepping_batches
        return self._steps if self._steps is not None or planned == float("inf") else int(planned)

    def _held_out(self, trainer: Trainer) -> Validate:
        given = self._validate
        if given is None:
            assert self._losses is not None
            given = held_out(_Batches(trainer), self._losses)
        own = given

        def validate(model: nn.Module) -> Tensor:
            with trainer.precision_plugin.val_step_context():
                return own(model)

        return validate


class _Batches:
    """The batches that the trainer validates on."""

    def __init__(self, trainer: Trainer) -> None:
        if trainer.val_dataloaders is None:
            raise ConfigError(
                "losses= needs a validation loader",
                why="the trainer has none, or does not load it before the first epoch is over",
                todo="give trainer.fit one, or the callback validate=",
                code="ESP-2462",
            )
        self._trainer = trainer

    def __iter__(self) -> Iterator[Any]:
        loaders = self._trainer.val_dataloaders
        several = loaders if isinstance(loaders, (list, tuple)) else [loaders]
        for loader, count in zip(several, self._trainer.num_val_batches, strict=True):
            yield from islice(loader, None if count == float("inf") else int(count))


def check_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Refuse a training whose loop the callback cannot follow.

    Raises:
        ConfigError: With what to do instead.
    """
    if not module.automatic_optimization:
        raise _refusal(
            "manual optimization",
            why="only training_step knows when which optimizer steps",
            todo="call esper.attach and growth.step there yourself",
        )
    if not (isinstance(trainer.strategy, SingleDeviceStrategy) or _is_ddp(trainer)):
        raise _refusal(
            f"the strategy {type(trainer.strategy).__name__}",
            why='growth was tried within Lightning on one device, and with strategy="ddp"',
            todo="use one of these, or train with your own loop, esper.attach and torchrun",
        )
    if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise _refusal(
            "a WeightAveraging callback",
            why="it pairs parameters by position, and a graft shifts them",
            todo="average the weights in a run of its own, when nothing grows any more",
        )


def _is_ddp(trainer: Trainer) -> bool:
    """Tell whether the strategy is that of DistributedDataParallel, and none that builds on it."""
    return type(trainer.strategy) is DDPStrategy


def _ddp_of(trainer: Trainer) -> DistributedDataParallel | None:
    """Return what averages the gradients, once the strategy has made it."""
    model = trainer.strategy.model
    return model if isinstance(model, DistributedDataParallel) else None


def check_optimizers(trainer: Trainer) -> None:
    """Refuse several optimizers or schedules.

    Raises:
        ConfigError: If there is not one optimizer, with one schedule or none.
    """
    optimizers, schedules = trainer.optimizers, trainer.lr_scheduler_configs
    if len(optimizers) != 1:
        raise _refusal(
            f"{len(optimizers)} optimizers",
            why="a newborn joins the one that trains its slot",
            todo="return one optimizer, with parameter groups, from configure_optimizers",
        )
    if len(schedules) > 1:
        raise _refusal(
            f"{len(schedules)} schedules",
            why="each would have to follow growth",
            todo="combine them with torch.optim.lr_scheduler.SequentialLR or ChainedScheduler",
        )


def _refusal(what: str, *, why: str, todo: str) -> ConfigError:
    return ConfigError(f"growth does not work with {what}", why=why, todo=todo, code="ESP-2465")


# -- hearing of a checkpoint before its values are loaded ----------------------------------------------------------------

_HOOK = "on_load_checkpoint"
_HEARD = "_esper_hears"


def _hear_loading(module: LightningModule, hear: Callable[[LightningModule, dict[str, Any]], None]) -> None:
    """Be told of a checkpoint as the LightningModule is; Lightning tells callbacks only when the values are loaded."""
    _stop_hearing(module)
    own = getattr(module, _HOOK)

    def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
        own(checkpoint)
        hear(module, checkpoint)

    vars(module)[_HEARD] = vars(module).get(_HOOK)
    vars(module)[_HOOK] = on_load_checkpoint


def _stop_hearing(module: LightningModule) -> None:
    if _HEARD not in vars(module):
        return
    before = vars(module).pop(_HEARD)
    if before is None:
        del vars(module)[_HOOK]
    else:
        vars(module)[_HOOK] = before


__all__ = ["Growth"]
