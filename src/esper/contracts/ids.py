"""Identifiers, told apart by type."""

from typing import NewType
from uuid import uuid4

RunId = NewType("RunId", str)
DecisionId = NewType("DecisionId", str)
BlueprintId = NewType("BlueprintId", str)
"""Content address of a blueprint: ``sha256:`` and the hex digest of its canonical JSON."""
KernelId = NewType("KernelId", str)
"""Content address of a trainable artifact: ``sha256:`` and the hex digest of its bytes."""
JobId = NewType("JobId", str)
MessageId = NewType("MessageId", str)


def new_id(prefix: str) -> str:
    """Return a fresh identifier such as ``run-3f2a9c0d1e4b``; drawn from the system, never from a global generator."""
    return f"{prefix}-{uuid4().hex[:12]}"
