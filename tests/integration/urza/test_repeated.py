"""Requests that are sent twice are answered as the first time."""

import asyncio
from pathlib import Path

from esper.contracts.problems import IDEMPOTENCY_KEY
from esper.services.urza.garbage import RetentionConfig
from esper.services.urza.kernel_manager import collector_of
from esper.testing.forging import adapter, request_for
from tests.integration.urza.service import Service, running


async def test_a_key_is_answered_as_the_first_time(service: Service) -> None:
    for width in (1, 2):
        await service.manager.submit(request_for(adapter(width)))
    headers, body = {IDEMPOTENCY_KEY: "claim-1"}, {"worker": "w", "lease_s": 30}
    _, first, _ = await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers)
    _, again, answered = await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers)
    assert again == first
    assert answered["Idempotent-Replayed"] == "true"
    _, other, _ = await service.ask("POST", "/api/v1/jobs/claim", json=body, headers={IDEMPOTENCY_KEY: "claim-2"})
    assert other["job_id"] != first["job_id"]


async def test_ten_at_once_with_one_key_are_one(service: Service) -> None:
    for width in range(1, 6):
        await service.manager.submit(request_for(adapter(width)))
    headers, body = {IDEMPOTENCY_KEY: "same"}, {"worker": "w", "lease_s": 30}
    answers = await asyncio.gather(
        *(service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers) for _ in range(10))
    )
    assert len({answer["job_id"] for _, answer, _ in answers}) == 1


async def test_a_refusal_is_repeated_too_and_a_key_of_another_request_is_a_mistake(service: Service) -> None:
    headers, body = {IDEMPOTENCY_KEY: "k"}, {"worker": "w"}
    for _ in range(2):
        status, problem, _ = await service.ask("POST", "/api/v1/jobs/job-1/release", json=body, headers=headers)
        assert (status, problem["code"]) == (404, "ESP-5000")
    status, problem, _ = await service.ask("POST", "/api/v1/jobs/job-2/release", json=body, headers=headers)
    assert (status, problem["code"]) == (422, "ESP-3416")
    assert (await service.ask("POST", "/api/v1/jobs/claim", json={}, headers={IDEMPOTENCY_KEY: "x" * 200}))[0] == 400


async def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.manager.submit(request_for(adapter()))
        headers, body = {IDEMPOTENCY_KEY: "k"}, {"worker": "w", "lease_s": 30}
        assert (await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers))[0] == 200
        assert (await collector_of(service.manager, RetentionConfig()).collect()).answers == 0
        assert (await collector_of(service.manager, RetentionConfig(answers_s=0)).collect()).answers == 1
        assert (await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers))[0] == 204
