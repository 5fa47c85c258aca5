"""A training whose store goes away in mid-run: growth waits, the training does not, and nothing is lost."""

import asyncio
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import esper
from esper.services.clients import UrzaClient
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.growth import Growth
from esper.telemetry.logs import to_terminal
from esper.testing.controllers import Silent
from esper.testing.store_process import StoreProcess
from tests.integration.test_growth_over_http import INPUTS, LABELS, held_out

LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def _tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the breaker probe every second in place of every minute."""
    monkeypatch.setenv("ESPER_STORE_TRANSPORT", '{"tries": 2, "recovery_timeout_s": 1.0}')


@dataclass
class Run:
    """A small training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    growth: Growth

    @classmethod
    def attached(cls, root: Path, store: str) -> "Run":
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        esper.wrap(model, example=INPUTS[:1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        growth = esper.attach(
            model, optimizer, validate=held_out, every=5, budget="x30", controller=Silent(), store=store, root=root
        )
        return cls(model, optimizer, growth)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(INPUTS), LABELS)
            loss.backward()
            self.optimizer.step()
            self.growth.step(loss)

    def graft(self) -> GrowthEvent:
        slot = next(candidate.slot for candidate in self.growth.propose() if candidate.blueprint == "mlp_adapter")
        return self.growth.graft(slot, "mlp_adapter")


def rolled_back(store: StoreProcess, kernel_id: str | None) -> int:
    async def asked() -> int:
        async with UrzaClient(store.url) as client:
            return (await client.kernel_statistics(str(kernel_id))).rolled_back

    return asyncio.run(asked())


def train_until_it_is_told(run: Run, store: StoreProcess, kernel_id: str | None) -> None:
    ends_at = time.monotonic() + LIMIT_S
    while not rolled_back(store, kernel_id):
        assert time.monotonic() < ends_at, "the outcome never came to the store"
        run.train(5)


@pytest.mark.timeout(240)
def test_a_store_that_is_away_for_a_while_stops_no_training_and_misses_no_outcome(tmp_path: Path) -> None:
    said = io.StringIO()
    with StoreProcess(tmp_path) as store, to_terminal(said, json=True):
        run = Run.attached(tmp_path / "runs", store.url)
        event = run.graft()
        store.kill()
        run.growth.rollback(event)
        waits = run.growth.waits
        ends_at = time.monotonic() + LIMIT_S
        while "outcome_not_stored" not in said.getvalue():
            assert time.monotonic() < ends_at, "nothing was said of the outage"
            run.train(5)
        assert run.growth.waits == waits
        store.start()
        train_until_it_is_told(run, store, event.kernel_id)
        run.growth.unlock(str(event.slot))
        assert run.graft().kind is EventKind.GRAFTED
        run.growth.close()
    told = [json.loads(line) for line in said.getvalue().splitlines() if "outcome_not_stored" in line]
    assert {line["decision_id"] for line in told} == {event.decision_id}
    outage = (
        "does not answer",
        "cannot be reached",
        "did not answer 5 times",
    )  # which it is called depends on when it was asked
    assert any(name in told[0]["why"] for name in outage), told[0]


@pytest.mark.timeout(240)
def test_what_a_run_could_not_tell_before_its_end_the_next_one_tells(tmp_path: Path) -> None:
    with StoreProcess(tmp_path) as store:
        run = Run.attached(tmp_path / "runs", store.url)
        event = run.graft()
        store.kill()
        run.growth.rollback(event)
        run.growth.close()
        store.start()
        assert rolled_back(store, event.kernel_id) == 0
        later = Run.attached(tmp_path / "runs", store.url)
        train_until_it_is_told(later, store, event.kernel_id)
        later.growth.close()
