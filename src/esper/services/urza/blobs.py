"""Bytes by content address, in a local folder."""

import asyncio
import os
from pathlib import Path

from esper.errors import ContractError, NotFound, StoreUnavailable
from esper.ir import digest_of, is_digest
from esper.runtime.files import own_folder, write_whole


class LocalBlobs:
    """Keeps bytes under ``sha256/ab/abcd…`` in a folder; implements `esper.ports.BlobStore`.

    Args:
        root: The folder; it is made where it is missing.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._root = own_folder(root)

    async def put(self, data: bytes) -> str:
        """Store bytes and return their content address.

        Sound bytes at that address are left as they are; damaged ones are replaced.

        Raises:
            StoreUnavailable: If the disk is full or fails.
        """
        digest = digest_of(data)
        await asyncio.to_thread(self._put, digest, data)
        return digest

    async def get(self, digest: str) -> bytes:
        """Return the bytes at an address.

        Raises:
            ContractError: If that is no content address.
            NotFound: If there are none.
            StoreUnavailable: If they are damaged, or cannot be read.
        """
        return await asyncio.to_thread(self._get, digest)

    def path(self, digest: str) -> Path:
        """Return where the bytes of an address lie.

        Raises:
            ContractError: If that is no content address.
        """
        if not is_digest(digest):
            raise ContractError(f"{digest[:80]!r} is no content address", todo="use sha256: and 64 hex digits")
        name = digest.removeprefix("sha256:")
        return self._root / "sha256" / name[:2] / name

    def _put(self, digest: str, data: bytes) -> None:
        path = self.path(digest)
        try:
            if path.exists() and digest_of(path.read_bytes()) == digest:
                return
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unreadable(digest, error) from error
        write_whole(path, data)
        os.chmod(path, 0o444)

    def _get(self, digest: str) -> bytes:
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"there are no bytes at {digest}", todo="compile the blueprint again") from error
        except OSError as error:
            raise _unreadable(digest, error) from error
        found = digest_of(data)
        if found != digest:
            raise StoreUnavailable(
                f"the bytes at {digest[:19]} are damaged",
                why=f"{len(data)} bytes with the digest {found[:19]}",
                todo="look after the disk, then compile the blueprint again",
                code="ESP-4210",
            )
        return data


def _unreadable(digest: str, error: OSError) -> StoreUnavailable:
    return StoreUnavailable(f"the bytes at {digest[:19]} cannot be reached", why=str(error), todo="check the folder")
