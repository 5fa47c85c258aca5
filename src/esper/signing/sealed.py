"""Bytes that somebody vouches for: sealed by who made them, opened by who loads them.

A seal is a fixed head, the fingerprint of a key, a signature, and the manifest that was signed. Up to the manifest there is
nothing to parse, and the manifest is parsed once its signature holds. The bytes themselves are handed out last, as `Verified`:
a loader of what can carry code takes that, and nothing else.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from esper.errors import KernelRejected
from esper.ir import digest_of
from esper.signing.keys import KeyRing, SigningKey, Trusted, fingerprint, verifies
from esper.signing.manifest import LARGEST_BYTES, Manifest, manifest_from_bytes, manifest_to_bytes

HEAD = b"ESPSEAL1"
"""What a seal begins with, and what is signed begins with: a signature on anything else is never one on a manifest."""

_PRINT_END = len(HEAD) + 32
_SIGNATURE_END = _PRINT_END + 64

SKEW = timedelta(minutes=5)
"""By how much the clocks of two machines may differ."""

_WITNESS = object()


@dataclass(frozen=True)
class Made:
    """How bytes came about.

    Attributes:
        kind: What they are.
        blueprint: Content address of the blueprint.
        compiler: What made them, with its version.
        torch: The torch that made them.
        device: The device that they run on.
    """

    kind: str
    blueprint: str
    compiler: str
    torch: str
    device: str


class Verified:
    """Bytes whose seal held; only `unseal` makes one.

    Attributes:
        manifest: What their signer says of them.
        data: The very bytes that were looked at.
    """

    __slots__ = ("data", "manifest")

    def __init__(self, witness: object, manifest: Manifest, data: bytes) -> None:
        if witness is not _WITNESS:
            raise KernelRejected("these bytes were not verified", todo="open them with unseal", code="ESP-7257")
        self.manifest, self.data = manifest, data

    @contextmanager
    def placed(self, name: str) -> Iterator[Path]:
        """Have the bytes in a file that only this user can reach, for a loader that wants a path; gone after the block."""
        with tempfile.TemporaryDirectory(prefix="esper-verified-") as folder:
            path = Path(folder) / name
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(self.data)
            yield path


def checked(form: object) -> Verified:
    """Return what a loader was handed, where its bytes are verified.

    Raises:
        KernelRejected: If it is anything else, such as raw bytes; annotations alone keep nobody out.
    """
    if type(form) is not Verified:
        raise KernelRejected(
            "these bytes were not verified",
            why=f"a loader takes Verified, and this is {type(form).__name__}",
            todo="open them with unseal",
            code="ESP-7257",
        )
    return form


def bytes_to_load(form: Verified, kind: str) -> bytes:
    """Return verified bytes to a loader of one kind.

    Raises:
        KernelRejected: If they are not verified, or were signed as another kind.
    """
    if checked(form).manifest.kind != kind:
        raise _other_kind(form.manifest, kind)
    return form.data


def seal(data: bytes, made: Made, key: SigningKey, *, now: datetime) -> bytes:
    """Return the seal of bytes.

    Args:
        data: The bytes.
        made: How they came about.
        key: Signs them.
        now: The time, in UTC.
    """
    manifest = manifest_to_bytes(
        Manifest(
            version=1, kind=made.kind, digest=digest_of(data), size=len(data), blueprint=made.blueprint,
            compiler=made.compiler, torch=made.torch, device=made.device, created=now,
        )
    )  # fmt: skip
    head = HEAD + fingerprint(key.public)
    return head + key.sign(head + manifest) + manifest


def unseal(data: bytes, sealed: bytes, ring: KeyRing, *, kind: str, now: datetime) -> Verified:
    """Return bytes once everything that their seal says holds; until then nothing of them is parsed.

    Args:
        data: The bytes.
        sealed: Their seal.
        ring: Keys that are trusted.
        kind: What the caller will load them as.
        now: The time, in UTC.

    Raises:
        KernelRejected: If the seal is none, its key is not trusted or was not at the time, its signature does not hold, or it
            is that of other bytes, or of another kind.
    """
    trusted = _trusted(sealed, ring)
    head, signature, manifest_bytes = sealed[:_PRINT_END], sealed[_PRINT_END:_SIGNATURE_END], sealed[_SIGNATURE_END:]
    if not verifies(trusted.key, signature, head + manifest_bytes):
        raise KernelRejected(
            f"the signature of {trusted.key_id} does not hold",
            why="seal or manifest were changed",
            todo="do not load it; look at where it came from",
            code="ESP-7253",
        )
    manifest = manifest_from_bytes(manifest_bytes)
    _check_time(manifest, trusted, now)
    _check_bytes(manifest, data)
    if manifest.kind != kind:
        raise _other_kind(manifest, kind)
    return Verified(_WITNESS, manifest, data)


def signer(sealed: bytes) -> bytes:
    """Return the fingerprint of the key that a seal names; nothing is verified by that.

    Raises:
        KernelRejected: If it is no seal.
    """
    if not sealed.startswith(HEAD) or not _SIGNATURE_END < len(sealed) <= _SIGNATURE_END + LARGEST_BYTES:
        raise KernelRejected(
            "these bytes have no seal",
            why=f"{len(sealed)} bytes do not make one" if sealed else "there is none",
            todo="let the forge sign them; what can carry code is not loaded otherwise",
            code="ESP-7251",
        )
    return sealed[len(HEAD) : _PRINT_END]


def _other_kind(manifest: Manifest, kind: str) -> KernelRejected:
    return KernelRejected(
        f"these bytes cannot be loaded as {kind}", why=f"they were signed as {manifest.kind}", code="ESP-7256"
    )


def _trusted(sealed: bytes, ring: KeyRing) -> Trusted:
    found = ring.find(signer(sealed))
    if found is None:
        raise KernelRejected(
            "the key that signed is not trusted",
            why=f"fingerprint {signer(sealed).hex()[:16]} is not in the ring",
            todo="trust it with KeyRing.trust if it is that of your forge",
            code="ESP-7252",
        )
    if found.revoked is not None:
        raise KernelRejected(
            f"{found.key_id} was revoked on {found.revoked:%Y-%m-%d}",
            why=found.why,
            todo="compile the blueprint again",
            code="ESP-7254",
        )
    return found


def _check_time(manifest: Manifest, trusted: Trusted, now: datetime) -> None:
    created = manifest.created
    if created > now + SKEW:
        why = "that lies in the future"
    elif trusted.since is not None and created < trusted.since - SKEW:
        why = f"{trusted.key_id} is trusted since {trusted.since.isoformat()}"
    elif trusted.until is not None and created > trusted.until + SKEW:
        why = f"{trusted.key_id} was replaced on {trusted.until.isoformat()}"
    else:
        return
    raise KernelRejected(
        f"it says that it was signed on {created.isoformat()}", why=why, todo="look at the clocks", code="ESP-7255"
    )


def _check_bytes(manifest: Manifest, data: bytes) -> None:
    if (len(data), digest_of(data)) != (manifest.size, manifest.digest):
        raise KernelRejected(
            "the seal is that of other bytes",
            why=f"{manifest.size} bytes with {manifest.digest[:15]}… were signed, these are {len(data)}",
            todo="do not load them; look at where they came from",
            code="ESP-7258",
        )
