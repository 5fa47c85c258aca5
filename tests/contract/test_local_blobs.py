from pathlib import Path

import pytest

from esper.errors import ConfigError, StoreUnavailable
from esper.services.urza.blobs import LocalBlobs
from esper.testing.blob_contract import BlobContract


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


class TestLocalBlobs(BlobContract):
    pass


async def test_damaged_bytes_are_never_handed_out(blobs: LocalBlobs) -> None:
    digest = await blobs.put(b"sound")
    path = blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"sOund")
    with pytest.raises(StoreUnavailable, match="damaged"):
        await blobs.get(digest)


async def test_putting_sound_bytes_again_heals_damaged_ones(blobs: LocalBlobs) -> None:
    digest = await blobs.put(b"sound")
    blobs.path(digest).chmod(0o644)
    blobs.path(digest).write_bytes(b"")
    assert await blobs.put(b"sound") == digest
    assert await blobs.get(digest) == b"sound"


async def test_nothing_but_whole_blobs_is_left_in_the_folder(blobs: LocalBlobs, tmp_path: Path) -> None:
    digest = await blobs.put(b"one")
    files = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert files == [blobs.path(digest)]


def test_a_folder_that_is_a_file_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ConfigError) as caught:
        LocalBlobs(tmp_path / "taken")
    assert "root=" in caught.value.todo


def test_a_folder_that_cannot_be_made_is_refused_with_advice() -> None:
    with pytest.raises(ConfigError) as caught:
        LocalBlobs(Path("/proc/library"))  # not even root may write there
    assert "root=" in caught.value.todo
