"""What training sees when files fail it: full disks, read-only folders, damage, death in the middle of a write."""

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from esper.errors import ContractError
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint

pytestmark = pytest.mark.chaos

PREAMBLE = """
import os, resource, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from esper.errors import ConfigError, StoreUnavailable
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint
folder = Path(sys.argv[1])
small = {"step": 1, "weights": torch.ones(10)}
large = {"step": 2, "weights": torch.ones(1_000_000)}
"""


def run(body: str, folder: Path) -> str:
    """Run Python code in a process of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + body, str(folder)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FULL = """
manager = CheckpointManager(folder)
manager.save(small, step=1)
fill()
for blocking in (True, False):
    try:
        manager.save(large, step=2, blocking=blocking)
        manager.wait()
    except StoreUnavailable as error:
        print(error)
print(manager.load()["step"], [path.name for path in sorted(folder.iterdir())])
drain()
manager.save(large, step=3)
print(manager.load()["step"])
"""
LIMITED = """
def fill(): resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
def drain(): resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
FILLED = """
def fill(): (folder.parent / "ballast").write_bytes(bytes(7 * 2**20))
def drain(): (folder.parent / "ballast").unlink()
"""


def check_full(said: str) -> None:
    first, second, after, last = said.splitlines()
    for line in (first, second):
        assert line.startswith("ESP-4220")
        assert "the checkpoints before it are untouched" in line
    assert after == "1 ['.lock', '.reading', '00000001-step-1']"
    assert last == "2"


def test_a_file_that_may_not_grow_further_leaves_the_older_checkpoint_and_training_goes_on(tmp_path: Path) -> None:
    check_full(run(LIMITED + FULL, tmp_path / "checkpoints"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_the_older_checkpoint_and_training_goes_on(small_disk: Path) -> None:
    check_full(run(FILLED + FULL, small_disk / "checkpoints"))


READ_ONLY = """
manager = CheckpointManager(folder)
path = manager.save(small, step=1)
folder.chmod(0o555)
if os.getuid() == 0:
    os.setuid(65534)
try:
    manager.save(small, step=2)
except StoreUnavailable as error:
    print(error)
try:
    CheckpointManager(folder)
except ConfigError as error:
    print(error)
print(manager.load()["step"], read_checkpoint(path)["step"])
"""


def test_a_read_only_folder_is_refused_at_the_start_and_told_at_a_save_and_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        said = run(READ_ONLY, Path(name) / "checkpoints").splitlines()
        (Path(name) / "checkpoints").chmod(0o755)
    assert said[0].startswith("ESP-4220")
    assert said[1].startswith("ESP-2310")
    assert "folder=" in said[1]
    assert said[2] == "1 1"


KILLED = """
def dies_at(count):
    calls = [0]
    def dying(real):
        def call(*args, **kwargs):
            calls[0] += 1
            if calls[0] > count:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    os.fsync, os.write, os.rename = dying(os.fsync), dying(os.write), dying(os.rename)
    Path.mkdir, Path.rename = dying(Path.mkdir), dying(Path.rename)

CheckpointManager(folder).save(small, step=1)
for count in range(100):
    child = os.fork()
    if child == 0:
        manager = CheckpointManager(folder, keep_last=1)
        dies_at(count)
        manager.save({**small, "step": 2}, step=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    manager = CheckpointManager(folder, keep_last=2)
    print(count, manager.load()["step"], manager.fallbacks, len(list(folder.glob(".writing-*"))), os.WIFSIGNALED(status))
    if not os.WIFSIGNALED(status):
        break
    if manager.load()["step"] == 2:
        manager.save(small, step=1)
"""


def test_a_process_that_dies_at_any_call_of_a_write_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    rows = [line.split() for line in run(KILLED, tmp_path / "checkpoints").splitlines()]
    assert len(rows) > 10
    assert {row[1] for row in rows} == {"1", "2"}
    assert all(row[2:4] == ["0", "0"] for row in rows)
    assert [row[4] for row in rows] == ["True"] * (len(rows) - 1) + ["False"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[CheckpointManager, Path]:
    """A folder with two checkpoints, and the newer of them."""
    manager = CheckpointManager(tmp_path_factory.mktemp("two"))
    for step in (1, 2):
        path = manager.save({"step": step, "weights": torch.rand(50), "keys": {(1, "a"): [1.5]}}, step=step, metric=0.5)
    return manager, path


@pytest.mark.parametrize("name", ["manifest.json", "structure.json", "tensors.safetensors"])
def test_no_changed_byte_in_any_file_goes_unseen(name: str, two: tuple[CheckpointManager, Path]) -> None:
    manager, path = two
    file = path / name
    whole = file.read_bytes()
    dice = random.Random(name)
    try:
        for place in range(len(whole)):
            data = bytearray(whole)
            data[place] ^= 1 << dice.randrange(8)
            file.write_bytes(data)
            with pytest.raises(ContractError):
                read_checkpoint(path)
        assert manager.load()["step"] == 1
    finally:
        file.write_bytes(whole)
    assert manager.load()["step"] == 2


@pytest.mark.parametrize("name", ["manifest.json", "structure.json", "tensors.safetensors"])
def test_no_truncation_goes_unseen(name: str, two: tuple[CheckpointManager, Path]) -> None:
    manager, path = two
    file = path / name
    whole = file.read_bytes()
    try:
        for length in {0, 1, len(whole) - 1, *random.Random(name).sample(range(len(whole)), 30)}:
            file.write_bytes(whole[:length])
            with pytest.raises(ContractError, match=name.replace(".", r"\.")):
                read_checkpoint(path)
        assert manager.load()["step"] == 1
    finally:
        file.write_bytes(whole)
