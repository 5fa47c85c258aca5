"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from esper.errors import ConfigError, StoreUnavailable


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old content or the new, and never a part.

    Args:
        path: Where; its folder must exist.
        data: The whole content.

    Raises:
        StoreUnavailable: If the disk is full or fails.
    """
    with written_whole(path) as file:
        file.write(data)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Do the same for content that is written piece by piece; where the block ends with an error the old content stays.

    It is written aside in the same folder, forced to the disk, renamed, and the rename forced to the disk too.

    Args:
        path: Where; its folder must exist.

    Raises:
        StoreUnavailable: If the disk is full or fails.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            _sync(file)
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreUnavailable(
            f"{path} cannot be written", why=str(error), todo="free space or choose another root="
        ) from error
    finally:
        aside.unlink(missing_ok=True)


def own_folder(path: Path, *, argument: str = "root") -> Path:
    """Make a folder that this process can write to.

    Args:
        path: Where; missing parents are made.
        argument: What the user named it by, for the error.

    Returns:
        The same path.

    Raises:
        ConfigError: If it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{uuid4().hex[:8]}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"the folder {path} cannot be written",
            why=error.strerror or str(error),
            todo=f"give {argument}= a folder that this user may write",
            code="ESP-2310",
        ) from error
    return path


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make a rename survive a power cut; Windows has no way to ask for it."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
