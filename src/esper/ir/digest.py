"""Content addresses."""

import hashlib
import re

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def digest_of(data: bytes) -> str:
    """Return the content address of bytes: ``sha256:`` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Say whether a text is a content address."""
    return _DIGEST.fullmatch(text) is not None
