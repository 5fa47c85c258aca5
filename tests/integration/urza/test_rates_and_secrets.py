"""Callers who ask too much, and what nobody is told."""

import io
import json
import re
from pathlib import Path

import pytest
from sqlalchemy import select

from esper.services.rest.rates import Rates
from esper.services.urza.access import AuditRow
from esper.services.urza.rest.config import UrzaConfig
from esper.telemetry.logs import to_terminal
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, request_for
from tests.integration.urza.strangers import Target, target


def test_rates_are_kept_per_caller_and_fill_up_again() -> None:
    clock = ManualClock()
    rates = Rates(10.0, 5, clock, callers=3)
    assert [rates.take("a") for _ in range(5)] == [0.0] * 5
    assert rates.take("a") == pytest.approx(0.1)
    assert rates.take("b") == 0.0
    clock.advance(0.1)
    assert rates.take("a") == 0.0
    assert rates.take("a") > 0
    for name in "cdefgh":
        rates.take(name)
    assert len(rates._buckets) == 3


async def test_who_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    async with target(tmp_path, requests_per_s=0.5, burst=3) as store:
        answers = [await store.ask("GET", "/status", key="read") for _ in range(5)]
        assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
        assert answers[-1][1]["code"] == "ESP-4720"
        assert 1 <= int(answers[-1][2]["Retry-After"]) <= 3  # type: ignore[call-overload, index]
        assert (await store.ask("GET", "/status", key="write"))[0] == 200


async def test_guessing_keys_is_slowed_down_and_others_are_not(tmp_path: Path) -> None:
    async with target(tmp_path, refusals_per_s=0.1) as store:
        statuses = [(await store.ask("GET", "/status", key=f"guess-{n}"))[0] for n in range(4)]
        assert statuses[0] == 401
        assert statuses[-1] == 429
        assert (await store.ask("GET", "/health", key=None))[0] == 200


async def test_secrets_are_in_no_log_answer_or_representation(tmp_path: Path) -> None:
    written = io.StringIO()
    config = UrzaConfig(
        root=tmp_path, require_keys=True, database_url="postgresql://me:hunter2secret@host/x",  # type: ignore[arg-type]
        bus_url="redis://:bussecret@host", s3_secret_access_key="bucketsecret",  # type: ignore[arg-type]
    )  # fmt: skip
    assert not re.search("hunter2secret|bussecret|bucketsecret", repr(config) + str(config.model_dump()))
    with to_terminal(written, level="debug", json=True):
        async with target(tmp_path) as store:
            token = store.keys["admin"]
            await store.ask("GET", "/status")
            await store.ask("GET", "/status", key=token + "x")
            await store.ask("GET", f"/api/v1/kernels/{token}")
            await store.ask("POST", "/api/v1/jobs/claim", data=b"{", headers={"Content-Type": "application/json"})
            _, problem, _ = await store.ask("GET", "/status?x=1", key=token[:-1])
            _, metrics, _ = await store.ask("GET", "/metrics")
            _, log, _ = await store.ask("GET", "/api/v1/audit")
    told = written.getvalue() + json.dumps(problem) + metrics.decode() + json.dumps(log)
    for secret in store.keys.values():
        assert secret not in told
        assert secret.split("_", 2)[2] not in told


async def test_what_keys_do_is_in_the_audit_log(store: Target) -> None:
    await store.ask("POST", "/api/v1/blueprints", key="write", json=request_for(adapter()).model_dump(mode="json"))
    async with store.manager.database.reading() as session:
        rows = (await session.scalars(select(AuditRow))).all()
    key_id = store.keys["write"].split("_")[1]
    assert [(row.actor, row.subject) for row in rows] == [(key_id, "/api/v1/blueprints")]
