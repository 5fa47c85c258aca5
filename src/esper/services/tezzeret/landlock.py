"""Where this process may write: Linux's Landlock takes every other place away, for good and without privileges."""

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# linux/landlock.h and linux/prctl.h; the numbers of the calls are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH, _NO_NEW_PRIVS = 1, 1, 38
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_MAKE_AND_REMOVE = 0x1FF0
"""Files, folders, links, sockets, pipes and devices."""
_SINCE = {_WRITE_FILE | _MAKE_AND_REMOVE: 1, _REFER: 2, _TRUNCATE: 3}
"""Rights, and the version that knows them."""

_ALWAYS = (Path(os.devnull), Path("/proc/self/clear_refs"))
"""What anybody throws away, and the reset of this process's peak of memory."""


def granted() -> bool:
    """Say whether this system confines processes so."""
    return _version() > 0


def write_only_in(folder: Path | None) -> None:
    """Let this process write, make, rename and remove files in one folder only, or nowhere.

    It holds for this thread and those that it starts: call it while there is no other.

    Args:
        folder: Where it may; None for nowhere.

    Raises:
        OSError: If the system refuses; nothing is confined then.
    """
    rights = sum(right for right, since in _SINCE.items() if since <= _version())
    ruleset = _called(_CREATE_RULESET, struct.pack("=Q", rights), 8, 0)
    try:
        if folder is not None:
            _allow(ruleset, folder, rights)
        for file in filter(Path.exists, _ALWAYS):
            _allow(ruleset, file, rights & (_WRITE_FILE | _TRUNCATE))
        # Without it, whoever is not root may not confine itself.
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        _called(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _version() -> int:
    try:
        return _called(_CREATE_RULESET, None, 0, _VERSION) if sys.platform == "linux" else 0
    except OSError:
        return 0


def _allow(ruleset: int, path: Path, rights: int) -> None:
    with _opened(path) as place:
        _called(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, place), 0)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        yield place
    finally:
        os.close(place)


def _called(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call.

    Raises:
        OSError: If it fails.
    """
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    found = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *words))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
