"""Files that are there whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from esper.errors import ConfigError, StoreUnavailable
from esper.runtime import files
from esper.runtime.files import own_folder, write_whole, written_whole


def test_a_file_holds_what_was_written_last_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    for data in (b"first", b"", b"third" * 1000):
        write_whole(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


class Crash(Exception):
    """The process ends here."""


STEPS = ("_sync", "replace", "sync_folder")


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_leaves_the_old_content_or_the_new(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")

    def crash(*_: object) -> None:
        raise Crash

    if step == "replace":
        monkeypatch.setattr(Path, "replace", crash)
    else:
        monkeypatch.setattr(files, step, crash)
    with pytest.raises(Crash):
        write_whole(path, b"new")
    assert path.read_bytes() == (b"new" if step == "sync_folder" else b"old")
    assert list(tmp_path.iterdir()) == [path]


def test_a_half_written_file_is_never_seen_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_whole(path, b"old")

    def torn() -> None:
        with written_whole(path) as file:
            file.write(b"a l")
            file.flush()
            assert path.read_bytes() == b"old"
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreUnavailable, match="No space left") as refused:
        torn()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert "free space" in refused.value.todo


def test_content_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(handle: int) -> None:
        order.append("sync of the folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "sync of the file")
        sync(handle)

    def renamed(self: Path, target: Path) -> Path:
        order.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    write_whole(tmp_path / "state", b"data")
    assert order == ["sync of the file", "rename", "sync of the folder"]


def test_a_missing_folder_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="No such file"):
        write_whole(tmp_path / "nowhere" / "state", b"data")


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "within"
    assert own_folder(path) == path
    assert own_folder(path) == path
    assert list(path.iterdir()) == []


def test_a_file_where_a_folder_is_needed_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be written") as refused:
        own_folder(tmp_path / "taken")
    assert refused.value.code == "ESP-2310"
    assert "root=" in refused.value.todo


def test_a_folder_that_may_only_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused_touch(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as a user to whom everything is allowed.
    monkeypatch.setattr(Path, "touch", refused_touch)
    with pytest.raises(ConfigError, match="Permission denied"):
        own_folder(tmp_path / "locked")
