"""On what a kernel is measured: figures may be compared where all of it is equal."""

import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

_LONGEST = 64


@cache
def hardware(threads: int = 1) -> str:
    """Return processor, threads and torch, such as ``AMD EPYC 9654 96-Core Processor 1 thread torch 2.13.0``.

    The processor's model stands for its instruction set.

    Args:
        threads: On which it is measured; a child of the forge has one.
    """
    rest = f" {threads} thread{'s' * (threads > 1)} torch {version('torch').partition('+')[0]}"
    return processor()[: _LONGEST - len(rest)] + rest


@cache
def processor() -> str:
    """Return the name of the processor; where the system has none to tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
