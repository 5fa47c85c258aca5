"""Identifiers, told apart by type."""

import os
from typing import NewType, cast
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


_BLOCK_BYTES = 11
"""Drawn for each block of ids: readers drop what has an id that they know, so that two equal ones among 10^12 must stay
unlikely."""
_LAST_DIGITS = [f"{last:02x}" for last in range(256)]

_fresh: list[MessageId] = []
os.register_at_fork(after_in_child=_fresh.clear)


def new_message_id() -> MessageId:
    """Return a fresh identifier of a message."""
    return new_message_ids(1)[0]


def new_message_ids(count: int) -> list[MessageId]:
    """Return fresh identifiers of messages; the system is asked once for a block of them, because there are many."""
    while len(_fresh) < count:
        block = f"message-{os.urandom(_BLOCK_BYTES).hex()}"
        _fresh.extend(cast("list[MessageId]", [block + last for last in _LAST_DIGITS]))
    made = _fresh[len(_fresh) - count :]
    del _fresh[len(_fresh) - count :]
    return made
