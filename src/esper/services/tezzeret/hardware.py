"""On what a kernel is measured: figures may be compared where all of it is equal."""

import platform
from functools import cache
from pathlib import Path

import torch

_LONGEST = 64


@cache
def hardware() -> str:
    """Return processor, instruction set, threads and torch of this process, such as ``AMD EPYC avx2 1 thread torch 2.13.0``."""
    threads = torch.get_num_threads()
    rest = f" {_instructions()} {threads} thread{'s' * (threads > 1)} torch {str(torch.__version__).partition('+')[0]}"
    return _processor()[: _LONGEST - len(rest)] + rest


def _instructions() -> str:
    return str(torch.backends.cpu.get_cpu_capability()).lower()


def _processor() -> str:
    """Return the name of the processor; where the system has none to tell, its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
