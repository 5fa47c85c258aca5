"""The trainer: a whole training loop over ``attach``, for those who want one; one noun per module."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.services.tolaria.checkpoint import CheckpointManager as CheckpointManager
    from esper.services.tolaria.trainer.averaging import Averaging as Averaging
    from esper.services.tolaria.trainer.clipping import Clipping as Clipping
    from esper.services.tolaria.trainer.config import TrainerConfig as TrainerConfig
    from esper.services.tolaria.trainer.keeping import Checkpoints as Checkpoints
    from esper.services.tolaria.trainer.report import TrainingReport as TrainingReport
    from esper.services.tolaria.trainer.stopping import Stopping as Stopping
    from esper.services.tolaria.trainer.trainer import TolariaTrainer as TolariaTrainer
    from esper.services.tolaria.trainer.validation import Validation as Validation

_HOME = {
    "Averaging": f"{__name__}.averaging",
    "CheckpointManager": "esper.services.tolaria.checkpoint",
    "Checkpoints": f"{__name__}.keeping",
    "Clipping": f"{__name__}.clipping",
    "Stopping": f"{__name__}.stopping",
    "TolariaTrainer": f"{__name__}.trainer",
    "TrainerConfig": f"{__name__}.config",
    "TrainingReport": f"{__name__}.report",
    "Validation": f"{__name__}.validation",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
