"""A training whose artifact store is another process, reached over HTTP."""

import asyncio
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.contracts.kernel import KernelStatus
from esper.errors import Rejected, StoreUnavailable
from esper.services.clients import UrzaClient
from esper.services.tolaria.events import EventKind
from esper.services.tolaria.growth import Growth
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.controllers import Silent
from esper.testing.server import free_port
from esper.testing.store_server import served
from tests.integration.urza.process import process

INPUTS = torch.rand(64, 2, generator=torch.Generator().manual_seed(7)) * 2 - 1
LABELS = (torch.sin(7 * INPUTS[:, 0]) > 2 * INPUTS[:, 1]).long()


def held_out(model: nn.Module) -> Tensor:
    return cross_entropy(model(INPUTS), LABELS, reduction="none")


def attached(root: Path, store: str) -> Growth:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    esper.wrap(model, example=INPUTS[:1])
    return esper.attach(
        model, torch.optim.AdamW(model.parameters(), lr=1e-2), validate=held_out, every=5, budget="x30",
        controller=Silent(), store=store, root=root,
    )  # fmt: skip


def grown(root: Path, store: str) -> str:
    """Graft by hand and take it back; return the kernel."""
    growth = attached(root, store)
    try:
        slot = next(candidate.slot for candidate in growth.propose() if candidate.blueprint == "mlp_adapter")
        event = growth.graft(slot, "mlp_adapter")
        assert event.kind is EventKind.GRAFTED
        growth.rollback(event)
        return str(event.kernel_id)
    finally:
        growth.close()


@pytest.mark.timeout(180)
async def test_kernels_and_outcomes_are_in_the_store_and_the_next_training_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(tmp_path) as (port, _, _log), UrzaClient(f"http://127.0.0.1:{port}") as client:
        kernel_id = await asyncio.to_thread(grown, tmp_path / "first", f"http://127.0.0.1:{port}")
        assert (await client.get_kernel(kernel_id)).status is KernelStatus.VALIDATED
        assert (await client.kernel_statistics(kernel_id)).rolled_back == 1
        assert not (tmp_path / "first" / "library").exists()
        assert [path.name for path in (tmp_path / "first" / "kernel-cache").iterdir() if kernel_id.endswith(path.name)]
        monkeypatch.setenv("ESPER_STORE_FORGE_WORKERS", "0")
        assert await asyncio.to_thread(grown, tmp_path / "second", f"http://127.0.0.1:{port}") == kernel_id


def test_a_store_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        attached(tmp_path, f"http://127.0.0.1:{free_port()}")


async def test_a_store_that_wants_a_key_refuses_who_has_none(tmp_path: Path) -> None:
    config = UrzaConfig(root=tmp_path, require_keys=True)
    async with await KernelManager.open(tmp_path / "library") as manager, served(manager, config) as address:
        with pytest.raises(Rejected):
            await asyncio.to_thread(attached, tmp_path, address)
