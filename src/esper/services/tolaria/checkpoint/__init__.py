"""Checkpoints: a training state in a folder of its own, whole or not at all."""

from esper.services.tolaria.checkpoint.folder import read_checkpoint
from esper.services.tolaria.checkpoint.manager import CheckpointManager

__all__ = ["CheckpointManager", "read_checkpoint"]
