"""What a child may take of the machine."""

import math
import os
import sys
from pathlib import Path

_MIB = 2**20
_OPEN_FILES = 64
"""Pipes, libraries and modules; a job opens none."""
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_CPU_MARGIN_S = 5.0
"""The parent's deadline comes first; this limit holds where the parent is gone."""


def limit_process(memory_limit_mb: int, file_limit_mb: int = 0) -> int:
    """Limit address space, open files, written bytes and core dumps of this process.

    Call it when everything is imported: how much address space torch takes differs by a factor of ten between its builds, so
    the limit counts from what is taken now.

    Args:
        memory_limit_mb: Address space that may be taken on top.
        file_limit_mb: Size of one written file; where it may lie, `write_only_in` says.

    Returns:
        The address space taken now, in MiB; 0 where the system does not tell, and memory is not limited.
    """
    base_mb = address_space_mb()
    if sys.platform == "win32":
        return base_mb
    import resource

    if base_mb:
        _lower(resource.RLIMIT_AS, (base_mb + memory_limit_mb) * _MIB)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_FSIZE, file_limit_mb * _MIB)
    _lower(resource.RLIMIT_CORE, 0)
    return base_mb


def leave_network() -> bool:
    """Move this process into a network of its own, in which there is nothing, not even itself.

    Call it before anything starts a thread: a user namespace, which whoever is not root needs for it, is given to processes
    with one thread only.

    Returns:
        Whether it worked; False where the system has no namespaces or grants none.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    unshare = ctypes.CDLL(None).unshare
    return bool(unshare(_CLONE_NEWNET) == 0 or unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def limit_job(deadline_s: float) -> None:
    """Let the system end this process when the next job takes more processor time than its deadline allows."""
    if sys.platform == "win32":
        return
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    until_s = math.ceil(usage.ru_utime + usage.ru_stime + deadline_s + _CPU_MARGIN_S)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (until_s if hard < 0 else min(until_s, hard), hard))


def address_space_mb() -> int:
    """Return the address space of this process in MiB, or 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") // _MIB


def _lower(kind: int, limit: int) -> None:
    """Set a limit for good, but not above the one that holds."""
    import resource

    hard = resource.getrlimit(kind)[1]
    allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (allowed, allowed))
