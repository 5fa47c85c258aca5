"""TensorBoard, by torch's own writer."""

from collections.abc import Mapping
from os import PathLike

from torch.utils.tensorboard import SummaryWriter

from esper.services.tolaria.events import GrowthEvent


class TensorBoardLogger:
    """Writes scalars, and growth events as text, to an event file.

    Args:
        folder: Where the event file is written.
        run_id: Not needed: the folder names the run.
    """

    def __init__(self, folder: str | PathLike[str], *, run_id: str = "") -> None:
        self._writer = SummaryWriter(str(folder))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write one scalar per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def event(self, event: GrowthEvent) -> None:
        """Write a growth event as text."""
        self._writer.add_text(f"growth/{event.kind.value}", str(event), event.step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
