"""A library that leaves as files and comes back."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.app import app
from esper.contracts.kernel import MOST_TAGS, BlueprintContract, BuildSpec, KernelStatus
from esper.contracts.store import KernelQuery
from esper.errors import ConfigError, ContractError, NotFound, StoreUnavailable
from esper.services.urza.exchange import Exchanged, export_library, import_library
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

ROOT = Path(__file__).resolve().parents[2]


async def filled(manager: KernelManager) -> list[str]:
    """Make three kernels, of which one is retired and one descends from another."""
    ids = []
    for width in (3, 1, 2):
        await manager.submit(request_for(adapter(width), tags=(f"w{width}",)))
        job = await manager.claim("w", lease_s=60)
        assert job is not None
        artifact = artifact_of(job.blueprint_id, bytes([width]) * 1000)
        await manager.complete(job.job_id, "w", artifact, verdict_on(artifact, throughput=float(width)))
        ids.append(artifact.artifact_id)
    ir = adapter(1)
    child = BlueprintContract(blueprint_id=ir.digest, name=ir.name, architecture_ir=ir.to_json())
    await manager.store_blueprint(child, adapter(2).digest)
    await manager.set_kernel_status(ids[0], KernelStatus.RETIRED)
    return ids


async def test_an_exported_library_comes_back_with_bytes_lineage_tags_and_figures(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path / "a") as old:
        ids = await filled(old)
        assert await export_library(old, tmp_path / "files") == Exchanged(3, 2, 2000)
        with pytest.raises(ConfigError, match="not empty"):
            await export_library(old, tmp_path / "files")
    async with await KernelManager.open(tmp_path / "b") as new:
        for _ in range(2):
            assert await import_library(new, tmp_path / "files") == Exchanged(3, 2, 2000)
        found = await new.search(KernelQuery(status=KernelStatus.VALIDATED))
        assert [(kernel.throughput, kernel.tags) for kernel in found.kernels] == [(2.0, ["w2"]), (1.0, ["w1"])]
        assert await new.read(ids[1]) == b"\x01" * 1000
        with pytest.raises(NotFound):
            await new.get_kernel(ids[0])
        line = await new.get_kernel_lineage(ids[1])
        assert [entry.blueprint_id for entry in line] == [adapter(1).digest, adapter(2).digest]
        assert await new.find(adapter(1).digest, BuildSpec()) is None


async def test_text_with_every_kind_of_line_end_comes_back(tmp_path: Path) -> None:
    ir, odd = adapter(1), "one\u2028two\u2029three\x85four\vfive\nsix"
    design = BlueprintContract(
        blueprint_id=ir.digest, name=odd, architecture_ir=ir.to_json(), tags=[odd], metadata={"of": odd}
    )
    async with await KernelManager.open(tmp_path / "a") as old:
        await old.store_blueprint(design)
        await export_library(old, tmp_path / "files")
    async with await KernelManager.open(tmp_path / "b") as new:
        await import_library(new, tmp_path / "files")
        found = await new.get_blueprint(ir.digest)
    assert (found.name, found.tags, found.metadata) == (odd, [odd], {"of": odd})


async def test_a_design_with_more_tags_than_are_given_at_once_comes_back(tmp_path: Path) -> None:
    ir, tags = adapter(1), sorted(f"tag-{number}" for number in range(MOST_TAGS + 6))
    async with await KernelManager.open(tmp_path / "a") as old:
        for part in (tags[:40], tags[40:]):
            design = BlueprintContract(blueprint_id="", name="many", architecture_ir=ir.to_json(), tags=part)
            await old.store_blueprint(design)
        await export_library(old, tmp_path / "files")
    async with await KernelManager.open(tmp_path / "b") as new:
        assert await import_library(new, tmp_path / "files") == Exchanged(1, 0, 0)
        assert (await new.get_blueprint(ir.digest)).tags == tags


async def test_files_that_were_changed_are_not_taken_in(tmp_path: Path) -> None:
    files = tmp_path / "files"
    async with await KernelManager.open(tmp_path / "a") as old:
        ids = await filled(old)
        await export_library(old, files)
    blob = files / "blobs" / "sha256" / ids[1][7:9] / ids[1][7:]
    blob.chmod(0o644)
    blob.write_bytes(b"\x02" * 1000)
    async with await KernelManager.open(tmp_path / "b") as new:
        with pytest.raises((StoreUnavailable, ContractError), match="damaged"):
            await import_library(new, files)
        with pytest.raises(NotFound):
            await new.get_kernel(ids[1])
        (files / "kernels.jsonl").write_text("{}")
        with pytest.raises(ContractError, match="line 1"):
            await import_library(new, files)


def test_the_commands_write_and_take_in(tmp_path: Path) -> None:
    for arguments in (["export", str(tmp_path / "files"), "--root", str(tmp_path / "a")],
                      ["import", str(tmp_path / "files"), "--root", str(tmp_path / "b")]):  # fmt: skip
        done = CliRunner().invoke(app, ["library", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        assert "0 blueprints" in done.stdout


def test_the_second_lock_is_part_of_the_first_without_torch() -> None:
    whole = set((ROOT / "requirements.lock").read_text(encoding="utf-8").split())
    part = set((ROOT / "requirements-urza.lock").read_text(encoding="utf-8").split())
    assert part <= whole
    assert not [line for line in part if line.startswith(("torch==", "nvidia", "triton", "lightning"))]
    assert any(line.startswith("fastapi==") for line in part)
