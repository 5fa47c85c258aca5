"""Garbage is collected while the service runs, and by a command."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.app import app
from esper.errors import NotFound, StoreUnavailable
from esper.ir import digest_of
from esper.ports import BlobEntry
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.garbage import RetentionConfig
from esper.services.urza.kernel_manager import KernelManager, collector_of
from esper.services.urza.rest.collecting import collecting
from esper.services.urza.rest.metrics import RestMetrics
from tests.integration.urza.service import running

ORPHAN = digest_of(b"orphan")


async def pieces() -> AsyncIterator[bytes]:
    yield b"orphan"


async def gone(manager: KernelManager) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await collector_of(manager)._blobs.size(ORPHAN)
            except NotFound:
                return
            await asyncio.sleep(0.02)


async def test_the_service_collects_by_itself_and_counts(tmp_path: Path) -> None:
    async with running(tmp_path, collect_every_s=0) as service:
        kernel_id = await service.kernel()
        await service.manager.upload(ORPHAN, 6, pieces())
    async with running(tmp_path, collect_every_s=0.05, retention={"grace_s": 0.0}) as service:
        await gone(service.manager)
        await asyncio.sleep(0.1)  # what removed it is counted once it has ended
        assert await service.client.read(kernel_id)
        _, metrics, _ = await service.ask("GET", "/metrics")
        assert b"esper_urza_collected_bytes_total 6.0" in metrics
        assert b'esper_urza_collections_total{end="done"}' in metrics


async def test_a_grace_that_is_not_over_keeps_what_was_just_uploaded(tmp_path: Path) -> None:
    async with running(tmp_path, collect_every_s=0.02) as service:
        await service.manager.upload(ORPHAN, 6, pieces())
        await asyncio.sleep(0.3)
        assert await collector_of(service.manager)._blobs.size(ORPHAN) == 6


class FailingBlobs(LocalBlobs):
    """A folder that cannot be listed the first times."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.faults: list[Exception] = [StoreUnavailable("the folder is away"), ValueError("a fault of ours")]

    async def entries(self) -> AsyncIterator[BlobEntry]:
        if self.faults:
            raise self.faults.pop(0)
        async for entry in super().entries():
            yield entry


async def test_a_collection_that_fails_is_counted_and_the_next_one_comes(tmp_path: Path) -> None:
    metrics = RestMetrics()
    blobs = FailingBlobs(tmp_path / "blobs")
    async with await KernelManager.at(f"sqlite:///{tmp_path / 'library.db'}", blobs) as manager:
        await manager.upload(ORPHAN, 6, pieces())
        async with collecting(collector_of(manager, RetentionConfig(grace_s=0)), 0.02, metrics):
            await gone(manager)
    counted = {sample.labels["end"]: sample.value for family in metrics.collections.collect() for sample in family.samples
               if sample.name.endswith("_total")}  # fmt: skip
    assert (counted["unavailable"], counted["failed"]) == (1, 1)


async def test_nothing_is_collected_where_that_is_left_to_the_command(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    async with await KernelManager.open(tmp_path) as manager, collecting(collector_of(manager), 0.0, RestMetrics()):
        assert asyncio.all_tasks() == before


def test_the_command_tells_first_and_removes_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def filled() -> None:
        async with await KernelManager.open(tmp_path / "library") as manager:
            await manager.upload(ORPHAN, 6, pieces())

    asyncio.run(filled())
    monkeypatch.chdir(tmp_path)

    def collected(*options: str) -> dict[str, object]:
        done = CliRunner().invoke(app, ["library", "collect", "--root", str(tmp_path / "library"), "--json", *options])
        assert done.exit_code == 0, done.output
        found: dict[str, object] = json.loads(done.output)
        return found

    assert collected()["blobs"] == 0, "the grace of a day is not over"
    (tmp_path / "esper.toml").write_text("[urza.retention]\ngrace_s = 0.0\n")
    garbage = {"kernels": 0, "blobs": 1, "size_bytes": 6, "answers": 0}
    assert collected("--dry-run") == garbage | {"dry_run": True}
    assert collected() == garbage | {"dry_run": False}
    assert collected()["blobs"] == 0
