"""What a signature says of some bytes."""

from datetime import datetime

import msgspec

from esper.errors import KernelRejected

LARGEST_BYTES = 16_384
"""Of a manifest; those of this project have a few hundred."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody with a key vouches for.

    Attributes:
        version: Of this record.
        kind: What the bytes are, such as ``aotinductor``: they are loaded as nothing else.
        digest: Content address of the bytes, ``sha256:<hex>``.
        size: Their number.
        blueprint: Content address of the blueprint that they were made of.
        compiler: What made them, with its version.
        torch: The torch that made them.
        device: The device that they run on.
        created: When they were signed.
    """

    version: int
    kind: str
    digest: str
    size: int
    blueprint: str
    compiler: str
    torch: str
    device: str
    created: datetime


def manifest_to_bytes(manifest: Manifest) -> bytes:
    """Return a manifest as it is signed: JSON with its names in order."""
    return msgspec.json.encode(manifest, order="sorted")


def manifest_from_bytes(data: bytes) -> Manifest:
    """Return the manifest in bytes whose signature holds.

    Raises:
        KernelRejected: If they are no manifest that this library knows.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise KernelRejected("a manifest cannot be read", why=str(error), code="ESP-7250") from error
    if manifest.created.tzinfo is None:
        raise KernelRejected("a manifest cannot be read", why="its time has no zone", code="ESP-7250")
    if manifest.version != 1:
        raise KernelRejected(
            "a manifest cannot be read",
            why=f"it has version {manifest.version}, and this library knows 1",
            todo="use the release that signed it, or a newer one",
            code="ESP-7250",
        )
    return manifest
