"""Checkpoints: a training state in a folder of its own, whole or not at all."""

from esper.services.tolaria.checkpoint.folder import read_checkpoint
from esper.services.tolaria.checkpoint.manager import CheckpointManager
from esper.services.tolaria.checkpoint.pretrained import from_pretrained, save_pretrained

__all__ = ["CheckpointManager", "from_pretrained", "read_checkpoint", "save_pretrained"]
