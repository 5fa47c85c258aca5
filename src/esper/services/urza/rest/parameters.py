"""Parameters that several endpoints share."""

from typing import Annotated

from fastapi import Path

DIGEST = r"^sha256:[0-9a-f]{64}$"

Digest = Annotated[str, Path(pattern=DIGEST, description="A content address: sha256: and 64 hex digits.")]
JobId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="A job.")]
