"""Growth inside ``transformers.Trainer``: one callback.

```python
from esper.integrations.transformers import GrowthCallback

growth = GrowthCallback(validate=validate, every=200, budget="+30%")
trainer = transformers.Trainer(model, args, train_dataset=data, callbacks=[growth])
trainer.train(resume_from_checkpoint=True)
```
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from esper.assembly import attach
from esper.contracts.ids import new_id
from esper.errors import ConfigError, NotFound
from esper.integrations.extras import missing
from esper.integrations.host_states import host_optimizer_state, host_schedule_state
from esper.integrations.options import check_called, checked, part_of, wrapped
from esper.integrations.saved import learn_slots, put_back, saved_run
from esper.kasmina.discovery import Wanted
from esper.kasmina.quiet import preserved_rng
from esper.services.tolaria.budget import Budget
from esper.services.tolaria.checkpoint import CheckpointManager
from esper.services.tolaria.distributed.formation import formation_of
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.held_out import Validate
from esper.services.tolaria.snapshot import Stateful, Subject

try:
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.scheduler import AcceleratedScheduler
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
    from transformers.utils import logging
except ImportError as error:
    raise missing("transformers", error) from error

KEY = "esper"
"""Folder in a checkpoint, and the mark in the trainer's own state, by which a resumed run is known."""


class GrowthCallback(TrainerCallback):
    """Lets a model grow while a ``transformers.Trainer`` trains it.

    Boundaries lie between two optimizer steps, after the schedule was stepped. Each checkpoint of the trainer has a folder
    ``esper`` with the whole run; ``trainer.train(resume_from_checkpoint=...)`` goes on from it as if nothing had happened.
    The trainer's own files of optimizer and schedule then hold the part of the host, as it reads them before this callback
    can tell it of the grafts.

    Args:
        every: Optimizer steps from one boundary to the next.
        budget: As for ``esper.attach``.
        validate: Returns a 1-D tensor of held-out losses for the model that grows; see ``esper.integrations.held_out``.
        module: Name of the part that grows, such as ``"model"``; the whole model by default.
        slots: As for ``esper.wrap``.
        example: One input batch of what grows, as a dict of keyword arguments; by default the first batch.
        steps: Planned length of the run in optimizer steps; by default what the trainer plans.
        state: Whatever else moves with the training; a scaler of mixed precision is added to it.
        resume_from: The checkpoint that is resumed, where it does not lie in ``args.output_dir``.
        options: Further arguments of ``esper.attach``.

    Attributes:
        run: The attached run, with its events, ``graft`` and ``rollback``; None before training.

    Raises:
        ConfigError: If an argument is not known.
    """

    def __init__(
        self,
        *,
        every: int,
        budget: str | Budget,
        validate: Validate,
        module: str | None = None,
        slots: Wanted = "auto",
        example: object = None,
        steps: int | None = None,
        state: Sequence[Stateful] = (),
        resume_from: str | Path | None = None,
        **options: Any,
    ) -> None:
        self.run: Growth | None = None
        self._validate, self._every, self._budget, self._steps = validate, every, budget, steps
        self._module, self._slots, self._example = module, slots, example
        self._state, self._options = tuple(state), checked(options)
        self._resume_from = None if resume_from is None else Path(resume_from)
        self._losses = _Losses()
        self._subject: Subject | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Attach the run; where one was saved, go on from it: by name, and after all that the trainer loaded by position."""
        check_arguments(args, state)
        self._end()
        saved = self._saved(args, state)
        model = part_of(parts["model"], self._module)
        wrapped(model, self._slots, self._example)
        if saved is not None:
            learn_slots(model, saved)
        self._subject = subject = self._read(args, model, parts)
        run = attach(
            model, subject.optimizer, validate=self._validate, every=self._every,
            steps=self._steps or state.max_steps, scheduler=subject.schedule, state=subject.others,
            budget=self._budget, ddp=_ddp_around(args, parts["model"]), **self._options,
        )  # fmt: skip
        if saved is not None:
            run.load_state_dict(saved["growth"])
        _marks(state)[KEY] = {"token": new_id("run") if saved is None else saved["token"]}
        self._losses.watch(parts["model"])
        self.run = run

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Pass one step of the optimizer."""
        if self.run is None or self._subject is None:
            return
        check_called(self._subject.model)
        for event in self.run.step(self._losses.take()):
            logging.get_logger(__name__).info(str(event))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """Put the run into the trainer's checkpoint."""
        if self.run is None or self._subject is None:
            return
        whole = saved_run(self.run, self._subject.model)  # every process has a part of it
        if not args.should_save:
            return
        folder = _folder(args, state)
        saved = {**whole, "global_step": state.global_step, "token": _marks(state)[KEY]["token"]}
        _manager(folder).save(saved, step=state.global_step)
        _write_host_part(folder, self._subject)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any) -> None:
        """End the run; the model stays as it is, or is the best one whole where the trainer has loaded its values."""
        best = state.best_model_checkpoint
        if self.run is not None and self._subject is not None and args.load_best_model_at_end and best is not None:
            with preserved_rng():
                put_back(self._subject, read_run(best))
        self._end()

    def _end(self) -> None:
        self._losses.forget()
        if self.run is not None:
            self.run.close()

    def _saved(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
        """Return the run of the checkpoint that is resumed; None where training begins, or no run was saved."""
        mark = _marks(state).get(KEY)
        if mark is None:
            return None
        given = self._resume_from or args.resume_from_checkpoint
        path = Path(given) if isinstance(given, (str, Path)) and Path(given).is_dir() else _folder(args, state)
        saved = read_run(path)
        if (saved["token"], saved["global_step"]) != (mark["token"], state.global_step):
            raise ConfigError(
                f"{path} is not the checkpoint that is resumed",
                why="the trainer does not tell a callback where that lies",
                todo="GrowthCallback(resume_from=...) with the same path",
                code="ESP-2466",
            )
        return saved

    def _read(self, args: TrainingArguments, model: nn.Module, parts: Mapping[str, Any]) -> Subject:
        optimizer, scaler = bare_optimizer(parts["optimizer"])
        schedule = parts["lr_scheduler"]
        if isinstance(schedule, AcceleratedScheduler):
            schedule = schedule.scheduler
        others = self._state if scaler is None else (*self._state, scaler)
        formation = formation_of(model, _ddp_around(args, parts["model"]))
        return Subject(model, optimizer, schedule, others, formation.followers(), formation.team)


def read_run(checkpoint: str | Path) -> dict[str, Any]:
    """Return the run in a checkpoint of the trainer.

    Raises:
        ConfigError: If there is none.
        ContractError: If it is damaged.
    """
    try:
        if not (Path(checkpoint) / KEY).is_dir():
            raise NotFound("no such folder")
        return _manager(Path(checkpoint)).load()
    except NotFound as error:
        raise ConfigError(
            f"the checkpoint {checkpoint} has no growing run",
            why=f"its folder {KEY} is not there; it may have been cut off while it was written",
            todo="resume an earlier one, or GrowthCallback(resume_from=...) where it lies elsewhere",
            code="ESP-2466",
        ) from error


def bare_optimizer(optimizer: Optimizer) -> tuple[Optimizer, Stateful | None]:
    """Return the optimizer inside Accelerate's wrapper, and the scaler that the wrapper steps it with."""
    scaler: Stateful | None = None
    while isinstance(optimizer, AcceleratedOptimizer):
        scaler = scaler or optimizer.scaler
        optimizer = optimizer.optimizer
    return optimizer, scaler


def check_arguments(args: TrainingArguments, state: TrainerState) -> None:
    """Refuse a training that the callback cannot follow.

    Raises:
        ConfigError: With the reason.
    """
    spread = args.n_gpu > 1 or bool(args.deepspeed) or bool(args.fsdp)
    if spread or state.is_hyper_param_search:
        raise ConfigError(
            "growth does not work with "
            + ("several devices in one process, deepspeed or fsdp" if spread else "hyperparameter search"),
            why="it was tried within transformers.Trainer on one device, and in several processes with DistributedDataParallel"
            if spread
            else "each trial trains a model of its own",
            todo="start one process for each device, as torchrun does" if spread else "grow with the parameters found",
            code="ESP-2465",
        )


def _ddp_around(args: TrainingArguments, model: nn.Module) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel that the trainer has made of its model, where several processes train.

    The trainer hands a callback the model inside, from which nothing leads outwards; so it is looked for among what there is.
    """
    if args.world_size == 1:
        return None
    found = [one for one in gc.get_objects() if issubclass(type(one), DistributedDataParallel) and one.module is model]
    return found[-1] if found else None


class _Losses:
    """The losses that the model returns in training, since the last step of the optimizer; never synchronised."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []
        self._summed = False
        self._hook: Any = None

    def watch(self, model: nn.Module) -> None:
        self._hook = model.register_forward_hook(self._see, with_kwargs=True)

    def take(self) -> Tensor | None:
        """Return the loss of the whole batch: the trainer has divided the parts of one already where it counts tokens."""
        seen, self._seen = self._seen, []
        if not seen:
            return None
        total = torch.stack(seen).sum()
        return total if self._summed else total / len(seen)

    def forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        self._hook, self._seen = None, []

    def _see(self, model: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if model.training and isinstance(loss, Tensor) and loss.ndim == 0:
            self._seen.append(loss.detach())
            self._summed = kwargs.get("num_items_in_batch") is not None


def _marks(state: TrainerState) -> dict[str, Any]:
    """Return what callbacks left in the trainer's state: a dict from the moment that training begins."""
    return cast("dict[str, Any]", state.stateful_callbacks)


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _manager(checkpoint: Path) -> CheckpointManager:
    return CheckpointManager(checkpoint / KEY, keep_last=1, keep_best=0)


def _write_host_part(folder: Path, subject: Subject) -> None:
    """Leave the host's part in the trainer's own files, in its own format: it loads them before a graft can be there."""
    if (folder / OPTIMIZER_NAME).exists():
        torch.save(host_optimizer_state(subject.model, subject.optimizer), folder / OPTIMIZER_NAME)
    if (folder / SCHEDULER_NAME).exists() and subject.schedule is not None:
        torch.save(host_schedule_state(subject.schedule, subject.optimizer), folder / SCHEDULER_NAME)


__all__ = ["GrowthCallback", "bare_optimizer", "read_run"]
