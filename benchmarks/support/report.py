"""The object that every benchmark prints."""

import json
import operator
import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "numpy", "safetensors", "pydantic", "sqlalchemy", "msgspec")
"""Whose versions may move a figure."""
PEERS = ("peft",)
"""Of peers that are measured in the same run, where they are installed."""

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Target:
    """A bar and what was measured against it.

    Attributes:
        metric: What is held against the bar.
        op: How: ``<=``, ``>=``, ``<``, ``>`` or ``==``.
        value: The bar.
        measured: What was found.
    """

    metric: str
    op: str
    value: float
    measured: float

    @property
    def met(self) -> bool:
        """Whether the bar was reached."""
        return OPERATORS[self.op](self.measured, self.value)

    def to_json(self) -> dict[str, object]:
        """Return the target as an object for JSON."""
        return {
            "metric": self.metric, "op": self.op, "value": self.value, "measured": self.measured, "met": self.met,
        }  # fmt: skip


@dataclass
class Answer:
    """What a benchmark found.

    Attributes:
        method: How it was measured, with the percentile.
        metrics: Figures of this library, by name; units are in the names.
        baselines: The same work done by hand or by others, in the same run.
        ratios: One over the other.
        targets: The bars.
        tables: Whole tables, for results that are kept; not printed for people.
    """

    method: str
    metrics: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    tables: list[dict[str, object]] = field(default_factory=list)


def report(name: str, answer: Answer, *, seed: int, quick: bool) -> dict[str, object]:
    """Return an answer with all that is needed to judge it: commit, hardware, versions, seed."""
    return {
        "name": name,
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "seed": seed,
        "quick": quick,
        "method": answer.method,
        "metrics": answer.metrics,
        "baselines": answer.baselines,
        "ratios": answer.ratios,
        "targets": [target.to_json() for target in answer.targets],
        **({"tables": answer.tables} if answer.tables else {}),
    }


def commit() -> str:
    """Return the commit that is checked out, with ``+changes`` where tracked files differ; ``unknown`` outside of git."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks", ":!benchmarks/results"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def hardware() -> dict[str, object]:
    """Return what the figures were measured on."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.platform(terse=True),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter."""
    found = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def table(found: dict[str, object]) -> str:
    """Return a report as text for people."""
    lines = [f"{found['name']}  commit {found['commit']}  seed {found['seed']}", str(found["method"])]
    for section in ("metrics", "baselines", "ratios"):
        held = found[section]
        if isinstance(held, dict) and held:
            lines += ["", section, *(f"  {key:<52}{value:>14.6g}" for key, value in held.items())]
    targets = found["targets"]
    if isinstance(targets, list) and targets:
        lines += ["", "targets", *(_line(target) for target in targets)]
    return "\n".join(lines)


def dumps(found: dict[str, object]) -> str:
    """Return a report as JSON text."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def _line(target: dict[str, object]) -> str:
    bar = f"{target['op']} {target['value']:g}"
    return f"  {target['metric']:<52}{target['measured']:>14.6g} {bar:>10}  {'met' if target['met'] else 'UNMET'}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
