"""How long do ``import esper`` and ``esper --help`` take, and are they silent?"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from benchmarks.support.report import Answer, Target

IMPORT_LIMIT_S = 0.3
HELP_LIMIT_S = 0.6
COMMANDS: dict[str, Sequence[str]] = {
    "bare": (sys.executable, "-c", "pass"),
    "import": (sys.executable, "-c", "import esper"),
    "import_attach": (sys.executable, "-c", "import esper; esper.attach"),
    "torch": (sys.executable, "-c", "import torch"),
    "help": (str(Path(sys.executable).with_name("esper")), "--help"),
}


def answer(*, quick: bool, seed: int) -> Answer:
    """Start each command again and again, in turn."""
    runs = 3 if quick else 15
    result = Answer(method=f"median wall time of {runs} processes each, in turn, after one that warms the caches up")
    with tempfile.TemporaryDirectory() as folder:
        taken, noise = _taken(runs, _environment(folder))
    middle = {name: statistics.median(times) for name, times in taken.items()}
    result.metrics["import_over_bare_s"] = middle["import"] - middle["bare"]
    result.metrics["help_s"] = middle["help"]
    result.metrics["import_attach_s"] = middle["import_attach"]
    result.metrics["stray_bytes"] = noise
    result.baselines.update({"bare_interpreter_s": middle["bare"], "import_torch_s": middle["torch"]})
    result.ratios["import_attach_over_import_torch"] = middle["import_attach"] / middle["torch"]
    bars = {"import_over_bare_s": IMPORT_LIMIT_S, "help_s": HELP_LIMIT_S, "stray_bytes": 0.0}
    result.targets += [Target(name, "<=", bar, result.metrics[name]) for name, bar in bars.items()]
    return result


def _taken(runs: int, environment: dict[str, str]) -> tuple[dict[str, list[float]], int]:
    """Return the times of every command, and how many bytes came that nobody asked for."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    noise = 0
    for turn in range(runs + 1):
        for name, command in COMMANDS.items():
            start = perf_counter()
            done = subprocess.run(command, capture_output=True, env=environment, check=True)
            if turn:
                taken[name].append(perf_counter() - start)
            noise += len(done.stderr) + (0 if name == "help" else len(done.stdout))
    return taken, noise


def _environment(folder: str) -> dict[str, str]:
    """Return the environment with a cache of compiled modules of its own, as an installed package has one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "PYTHONPYCACHEPREFIX": folder}
