"""A small JSON file that names the other files of its folder by digest, and carries the digest of itself."""

import hashlib
import json
from pathlib import Path
from typing import Any

from esper.errors import ContractError
from esper.ir import digest_of
from esper.services.tolaria.checkpoint.tensors import Written

MOST_BYTES = 16 * 2**20
"""A graft takes some kilobytes in the table; this holds thousands of them."""


def sealed(kind: str, version: int, body: dict[str, Any]) -> bytes:
    """Return the file's content: kind, version, the body, and last the digest of all that."""
    whole = {"format": kind, "version": version, **body}
    return _rendered({**whole, "digest": digest_of(_rendered(whole))})


def read_sealed(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Return the body of a file that ``sealed`` made, checked.

    Raises:
        ContractError: If it is missing, too large, damaged, of another kind, or of a version that is not known.
    """
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= MOST_BYTES else b""
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    if size > MOST_BYTES:
        raise damaged(path, f"it has {size} bytes, and none has more than {MOST_BYTES}")
    body = _parsed(path, data)
    if body.get("format") != kind:
        raise damaged(path, f"it is no {kind}")
    if body.get("version") != version:
        raise ContractError(
            f"{path} has version {body.get('version')!r}",
            why=f"this version of Esper reads version {version}",
            todo="open it with the version of Esper that wrote it, or a newer one",
            code="ESP-3310",
        )
    digest = body.pop("digest", None)
    if digest != digest_of(_rendered(body)) or data != _rendered({**body, "digest": digest}):
        raise damaged(path, "it is not what was written: its digest is another one")
    del body["format"], body["version"]
    return body


def verify(path: Path, expected: Written | None, *, most_bytes: int | None = None) -> None:
    """Hold a file against size and digest, before anything in it is parsed.

    Raises:
        ContractError: If it is missing, not listed, too large, or not what was written.
    """
    if expected is None:
        raise damaged(path, "the manifest does not list it")
    try:
        size = path.stat().st_size
        if most_bytes is not None and size > most_bytes:
            raise damaged(path, f"it has {size} bytes, and none has more than {most_bytes}")
        if size != expected.num_bytes:
            raise damaged(path, f"it has {size} bytes, {expected.num_bytes} were written")
        with path.open("rb") as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except FileNotFoundError as error:
        raise damaged(path, "it is missing") from error
    if found != expected.digest:
        raise damaged(path, f"its digest is {found[:19]}, it was written with {expected.digest[:19]}")


def damaged(path: Path, why: str) -> ContractError:
    """Return the error of a file that cannot be used."""
    return ContractError(
        f"{path} cannot be used",
        why=why,
        todo='take another copy; of checkpoints, load("latest") takes the newest that is whole',
        code="ESP-3300",
    )


def _parsed(path: Path, data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as wrong:
        raise damaged(path, f"it is no JSON: {wrong}") from wrong
    return body if isinstance(body, dict) else {}


def _rendered(body: dict[str, Any]) -> bytes:
    return (json.dumps(body, indent=1, allow_nan=False) + "\n").encode()
