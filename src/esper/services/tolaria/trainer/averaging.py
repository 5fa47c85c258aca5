"""An exponential average of the weights, which grows with the model."""

from dataclasses import dataclass

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esper.services.tolaria.trainer.choices import check


@dataclass(frozen=True)
class Averaging:
    """How weights are averaged; validations of the trainer then measure the average.

    Attributes:
        decay: Share of the average that stays at each update.
        every: Optimizer steps between two updates.

    Raises:
        ConfigError: If ``decay`` is not between 0 and 1, or ``every`` below 1.
    """

    decay: float = 0.999
    every: int = 1

    def __post_init__(self) -> None:
        check(0 < self.decay < 1, f"decay={self.decay}", why="a share lies between 0 and 1")
        check(self.every >= 1, f"every={self.every}", why="it counts steps", todo="give 1 or more")

    def of(self, model: nn.Module) -> AveragedModel:
        """Return an average that begins at the model's weights; its buffers are those of the model."""
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.decay))  # type: ignore[no-untyped-call]
