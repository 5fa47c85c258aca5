"""Small named state in a folder."""

import asyncio
import string
from pathlib import Path

from esper.errors import ContractError, StoreUnavailable
from esper.runtime.files import own_folder, write_whole

_LONGEST_NAME = 200
# Small letters only: some file systems do not tell A from a.
_PLAIN = frozenset((string.ascii_lowercase + string.digits + "-_").encode())


class LocalState:
    """Keeps each value in a file of its own; implements `esper.ports.StateStore`.

    Args:
        root: Folder for the values; it is made where it is missing.

    Raises:
        ConfigError: If the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._root = own_folder(root)

    async def put(self, key: str, value: bytes) -> None:
        """Store a value, whole or not at all.

        Raises:
            ContractError: If the key is empty or too long.
            StoreUnavailable: If the disk is full or fails.
        """
        await asyncio.to_thread(write_whole, self._path(key), value)

    async def get(self, key: str) -> bytes | None:
        """Return what was put last, or None.

        Raises:
            StoreUnavailable: If it cannot be read.
        """
        return await asyncio.to_thread(_read, self._path(key))

    def _path(self, key: str) -> Path:
        name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in key.encode())
        if not name or len(name) > _LONGEST_NAME:
            raise ContractError(
                f"bad state key {key[:80]!r}",
                why=f"its file name would have {len(name)} of 1 to {_LONGEST_NAME} characters",
            )
        return self._root / name


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreUnavailable(f"state {path.name} cannot be read", why=str(error)) from error
