"""The command line is quick to start, silent, and answers mistakes in a sentence with an exit code that means something."""

import subprocess
import sys
from pathlib import Path

import pytest

from esper import __version__
from esper.cli import exit_code
from esper.errors import (
    CircuitOpen,
    ConfigError,
    Conflict,
    EsperError,
    GraftFailed,
    InvalidBlueprint,
    KernelRejected,
    NotFound,
)


def esper(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "esper.cli", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def loaded_after(code: str, *names: str) -> list[str]:
    """Return which of the named modules code brings along in a fresh interpreter."""
    shown = f"{code}\nimport sys; print([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, timeout=60, check=True)
    return [name for name in names if f"'{name}'" in done.stdout]


def test_importing_the_command_line_brings_nothing_heavy() -> None:
    assert loaded_after("import esper.cli.app", "torch", "numpy", "sklearn", "pydantic") == []
    assert loaded_after("import torch", "torch") == ["torch"]


def test_the_process_that_shows_a_demo_does_without_torch() -> None:
    assert loaded_after("import esper.cli.stage, esper.demos.demo, esper.demos.tune", "torch", "sklearn") == []


def test_help_names_what_exists_and_writes_no_file(tmp_path: Path) -> None:
    done = esper("--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    verbs = done.stdout.partition("Commands")[2]
    assert {"blueprint", "bus", "demo", "export", "kernel", "keys", "library", "serve"} <= set(verbs.split())
    for later in ("train", "rollback", "watch"):
        assert later not in verbs
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    done = esper("--version", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"esper {__version__}\n")


def test_a_mistyped_task_is_answered_with_the_near_one_and_without_a_trace(tmp_path: Path) -> None:
    done = esper("demo", "spiral", folder=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "ESP-5101: no demo 'spiral': demos are digits, spirals, pydoc. Did you mean spirals?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [("demo",), ("demo", "spirals", "--seed"), ("dmeo",), ("demo", "digits", "--seeds", "x")]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = esper(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("count", ["0", "-1", "1001"])
def test_seeds_that_cannot_be_reported_are_refused(count: str, tmp_path: Path) -> None:
    done = esper("demo", "spirals", "--seeds", count, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ESP-2410: --seeds {count}: ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (InvalidBlueprint("x", path="$"), 2),
        (NotFound("x"), 3),
        (KernelRejected("x"), 4),
        (CircuitOpen("x"), 5),
        (Conflict("x"), 1),
        (GraftFailed("x"), 1),
        (EsperError("x"), 1),
    ],
)
def test_exit_codes_follow_what_the_caller_can_do(error: EsperError, code: int) -> None:
    assert exit_code(error) == code
