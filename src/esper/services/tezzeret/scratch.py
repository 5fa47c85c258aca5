"""A folder in which one child may write: what inductor compiles, and what is unpacked to be loaded."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from esper.runtime.clock import SystemClock
from esper.services.tezzeret.landlock import granted

COMPILERS = ("g++", "clang++")


_PREFIX = "esper-scratch-"
_LEFT_S = 60.0
"""How old a folder must be to be looked at: a new one is not held yet."""


class Scratch:
    """A new folder that only this user can reach; it lies where ``TMPDIR`` says.

    It is held by a lock that ends with this process, so that the next forge finds what one that was killed left behind, and
    removes it.
    """

    def __init__(self) -> None:
        _remove_left_behind(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._held: int | None = _hold(self.folder)

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables by which a child finds it, and the compiler that works in it."""
        compiler = compiler_here()
        path = os.pathsep.join((os.path.dirname(compiler), os.defpath)) if compiler else ""
        found = {"CXX": compiler, "PATH": path} if compiler else {}
        folder = str(self.folder)
        # The child has one core, and inductor's own children would need another greeting.
        return {"TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1", **found}

    async def empty(self) -> None:
        """Remove what a job left in it."""
        await asyncio.to_thread(_emptied, self.folder)

    async def remove(self) -> None:
        """Remove it."""
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None


def compiler_here() -> str | None:
    """Return the path of a C++ compiler, or None."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def no_compiler() -> str:
    """Return why nothing can be compiled to machine code here, or nothing."""
    if not compiler_here():
        return f"there is no C++ compiler on PATH; install {' or '.join(COMPILERS)}"
    libraries = find_spec("torch")
    if libraries is not None and " " in str(libraries.origin):
        return f"inductor cannot link libraries whose path has a space: {libraries.origin}"
    return ""


def no_scratch() -> str:
    """Return why children get no folder to write in, or nothing."""
    return "" if granted() else "this system does not keep processes from writing elsewhere (Linux with Landlock does)"


def _hold(folder: Path) -> int | None:
    """Return a descriptor that holds a folder until it is closed, or None where another one holds it or it is gone."""
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_left_behind(parent: Path) -> None:
    """Remove folders of this user that no process holds."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            found = folder.stat(follow_symlinks=False)
        except OSError:
            continue
        if found.st_uid != os.getuid() or SystemClock().now_s() - found.st_mtime < _LEFT_S:
            continue
        descriptor = _hold(folder)
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _emptied(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)
