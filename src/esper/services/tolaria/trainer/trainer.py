"""A whole training over ``attach``, for those who want one."""

import asyncio
import copy
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from torch import nn

from esper.errors import Unavailable
from esper.services.tolaria.trainer.config import TrainerConfig, check_config, rehearsed
from esper.services.tolaria.trainer.determinism import seed_of, seeded
from esper.services.tolaria.trainer.interrupts import stoppable
from esper.services.tolaria.trainer.loop import Halt, Halted
from esper.services.tolaria.trainer.processes import team_of
from esper.services.tolaria.trainer.report import TrainingReport
from esper.services.tolaria.trainer.session import conduct


class TolariaTrainer:
    """Trains a model that grows; in several processes where ``torch.distributed`` was initialised with them.

    Args:
        config: How.

    Raises:
        ConfigError: If something in it cannot be used.
    """

    def __init__(self, config: TrainerConfig) -> None:
        check_config(config)
        self.config = config

    async def train(
        self, model: nn.Module, dataloader: Iterable[Any], validation: Iterable[Any] | None = None
    ) -> TrainingReport:
        """Train in a thread of its own, so that training and the caller's loop never block each other.

        Where the waiting task is cancelled, training ends after its present step.

        Args:
            model: Wrapped by ``esper.wrap``, or wrapped here with automatic slots.
            dataloader: Training batches.
            validation: Held-out batches, never of the test split; without them a share of the training data is held out.

        Returns:
            What came of it.

        Raises:
            ConfigError: If the loader is empty, cannot be gone back to, cannot be split, or cannot be shared out.
            Unavailable: If another process was asked to end.
        """
        halt = Halt()
        training = asyncio.ensure_future(asyncio.to_thread(self._fit, model, dataloader, validation, halt))
        try:
            return await asyncio.shield(training)
        except Halted as halted:
            raise Unavailable("the training ended before its time", why="it was ended in another process") from halted
        except asyncio.CancelledError:
            halt.ask()
            await asyncio.wait([training])
            training.exception()  # the caller is told of the cancellation
            raise

    def fit(
        self, model: nn.Module, dataloader: Iterable[Any], validation: Iterable[Any] | None = None
    ) -> TrainingReport:
        """Train in this thread; see ``train``.

        Raises:
            KeyboardInterrupt: If the user interrupted it; it ends after its present step. A second interrupt ends it at once.
            SystemExit: If it was terminated; it ends after its present step too, its last checkpoint written.
        """
        halt = Halt()
        with stoppable(halt):
            return self._fit(model, dataloader, validation, halt)

    def _fit(
        self, model: nn.Module, dataloader: Iterable[Any], validation: Iterable[Any] | None, halt: Halt
    ) -> TrainingReport:
        config = self.config
        team = team_of(model, config.ddp, control=config.control)
        with ExitStack() as stack:
            if config.fast_dev_run:
                root = stack.enter_context(tempfile.TemporaryDirectory(prefix="esper-"))
                config, model = rehearsed(config, root), copy.deepcopy(model)
            stack.enter_context(seeded(seed_of(config.seed, team.rank), deterministic=config.deterministic))
            return conduct(config, model, dataloader, validation, halt, team)
