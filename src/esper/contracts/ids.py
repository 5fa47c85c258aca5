"""Identifiers, told apart by type."""

import os
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


_BLOCK = 256
_ID_BYTES = 12
"""Of a message: readers drop what has an id that they know, so that two equal ones among 10^12 must stay unlikely."""

_fresh: list[MessageId] = []
os.register_at_fork(after_in_child=_fresh.clear)


def new_message_id() -> MessageId:
    """Return a fresh identifier of a message; drawn from the system in blocks, because there are many."""
    try:
        return _fresh.pop()
    except IndexError:
        drawn = os.urandom(_BLOCK * _ID_BYTES).hex()
    width = 2 * _ID_BYTES
    made = [MessageId(f"message-{drawn[start : start + width]}") for start in range(0, len(drawn), width)]
    _fresh.extend(made[1:])
    return made[0]
