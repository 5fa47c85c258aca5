"""What a child may write lies in a folder of its own, is small, and is gone after the job."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from esper.errors import ConfigError
from esper.ir import BlueprintIR, Graph, Layout, OpSpec, ops
from esper.services.tezzeret.landlock import granted
from esper.services.tezzeret.pool import ForgePool, PoolConfig
from esper.services.tezzeret.scratch import Scratch, no_compiler
from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
from esper.testing.faults import Fault, faulty
from tests.unit.tezzeret.test_pool import order

STORE = "http://127.0.0.1:1"
needs_landlock = pytest.mark.skipif(not granted(), reason="this system confines no process so")

LITTERS = '''
"""An operation that leaves a file in the scratch folder, and cannot make it too large."""
import tempfile
from pathlib import Path
from esper.blueprints import register_body
from esper.ir import OpSpec, ops
from esper.reference import register_formula

def litter(x):
    left = Path(tempfile.gettempdir()) / "left"
    left.write_bytes(bytes(1000))
    try:
        left.write_bytes(bytes(2 * 2**20))
    except OSError:
        return 0.5 * x
    return 2.0 * x

ops.register(OpSpec("litters.half"))
register_body("litters.half", lambda use, tensors: litter)
register_formula("litters.half", lambda use, own, inputs, training: 0.5 * inputs[0])
'''


def littering() -> BlueprintIR:
    ops.register(OpSpec("litters.half"))
    try:
        graph = Graph(Layout.FEATURES, 8)
        hidden = graph.apply("litters.half", graph.linear(graph.input, out=4))
        return graph.finish(graph.linear(hidden, out=8, init="zero"), "littering")
    finally:
        ops.unregister("litters.half")


@needs_landlock
@pytest.mark.parametrize("fork_per_job", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_job_writes_small_files_in_its_scratch_folder_which_is_empty_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_per_job: bool
) -> None:
    (tmp_path / "litters.py").write_text(LITTERS)
    (tmp_path / "scratches").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratches"))
    pool = ForgePool(
        PoolConfig(extensions=("litters", "esper.testing.faults"), scratch_mb=1, fork_per_job=fork_per_job)
    )
    try:
        _, report = await pool.forge(order(littering()))
        assert report.passed, report.reasons
        (scratch,) = (tmp_path / "scratches").iterdir()
        assert list(scratch.iterdir()) == []
        _, report = await pool.forge(order(faulty(Fault.WRITES)))
        assert report.passed, report.reasons
        assert (pool.started, pool.confined) == (1, True)
    finally:
        await pool.close()
    assert list((tmp_path / "scratches").iterdir()) == []


async def test_a_scratch_folder_is_emptied_of_whatever_lies_in_it(tmp_path: Path) -> None:
    scratch, outside = Scratch(), tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (scratch.folder / "deep" / "deeper").mkdir(parents=True)
    (scratch.folder / "deep" / "file").touch()
    (scratch.folder / "link").symlink_to(outside)
    await scratch.empty()
    assert list(scratch.folder.iterdir()) == []
    await scratch.remove()
    assert not scratch.folder.exists()
    assert (outside / "kept").exists()


def test_a_forge_for_machine_code_does_not_start_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"ESP-2573.*no C\+\+ compiler on PATH; install g\+\+"):
        TezzeretWorker(WorkerConfig(urza_url=STORE, backend="aotinductor"))
    TezzeretWorker(WorkerConfig(urza_url=STORE, backend="onnx"))
    (tmp_path / "clang++").touch(0o755)
    assert "no C++ compiler" not in no_compiler()  # a path with a space may stand in the way still
    assert Scratch().environment["CXX"] == os.fspath(tmp_path / "clang++")


def test_a_forge_for_machine_code_does_not_start_where_nothing_confines_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.services.tezzeret.scratch.granted", lambda: False)
    monkeypatch.setattr("esper.services.tezzeret.scratch.no_compiler", lambda: "")
    with pytest.raises(ConfigError, match="ESP-2573"):
        TezzeretWorker(WorkerConfig(urza_url=STORE, backend="aotinductor"))


async def test_what_a_killed_forge_left_behind_is_removed_by_the_next_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, kept, held = left_by_a_killed_process(tmp_path), tmp_path / "esper-elsewhere", Scratch()
    (tmp_path / "precious").mkdir()
    link, new = tmp_path / "esper-scratch-link", tmp_path / "esper-scratch-new"
    link.symlink_to(tmp_path / "precious")
    for folder in (kept, new):
        folder.mkdir()
    for folder in (left, kept, held.folder):
        os.utime(folder, (0, 0))
    assert (left / "unpacked").is_file()
    following = Scratch()
    assert not left.exists()
    assert all(folder.is_dir() for folder in (kept, new, held.folder, link, following.folder))
    await held.remove()
    await following.remove()
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, new.name, link.name, "precious"}


def left_by_a_killed_process(parent: Path) -> Path:
    environment = {**os.environ, "TMPDIR": str(parent)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True)
    return Path(killed.stdout.strip())


KILLED = """
import os, signal
from esper.services.tezzeret.scratch import Scratch
scratch = Scratch()
(scratch.folder / "unpacked").write_text("machine code")
print(scratch.folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
