"""Requests that are sent twice are answered as the first time."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from esper.contracts.problems import IDEMPOTENCY_KEY
from esper.errors import StoreUnavailable
from esper.services.urza.garbage import RetentionConfig
from esper.services.urza.jobs import JobQueue
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


@pytest.mark.parametrize("fault", [ZeroDivisionError("a fault"), StoreUnavailable("an outage")])
async def test_what_ended_in_a_fault_is_undone_and_done_again_under_the_same_key(
    service: Service, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    await service.manager.submit(request_for(adapter()))
    headers, body = {IDEMPOTENCY_KEY: "k"}, {"worker": "w", "lease_s": 30}

    async def claimed_and_lost(self: JobQueue, worker: str, **given: Any) -> None:
        assert await claim(self, worker, **given) is not None
        raise fault

    claim = JobQueue.claim
    with monkeypatch.context() as broken:
        broken.setattr(JobQueue, "claim", claimed_and_lost)
        assert (await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers))[0] >= 500
    status, job, _ = await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers)
    assert (status, job["attempt"]) == (200, 1)


async def test_a_refusal_undoes_what_it_is_about_and_keeps_its_answer(service: Service) -> None:
    before = await service.client.submit(request_for(adapter(1)))
    wrong = {"worker": "nobody", "reason": "", "retry": False}
    headers = {IDEMPOTENCY_KEY: "k"}
    answers = [await service.ask("POST", "/api/v1/jobs/job-1/fail", json=wrong, headers=headers) for _ in range(2)]
    assert answers[0][:2] == answers[1][:2]
    assert answers[0][0] == 404
    assert (await service.client.submit(request_for(adapter(1)))).queue_position == before.queue_position


async def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    async with running(tmp_path) as service:
        await service.manager.submit(request_for(adapter()))
        headers, body = {IDEMPOTENCY_KEY: "k"}, {"worker": "w", "lease_s": 30}
        assert (await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers))[0] == 200
        assert (await collector_of(service.manager, RetentionConfig()).collect()).answers == 0
        assert (await collector_of(service.manager, RetentionConfig(answers_s=0)).collect()).answers == 1
        assert (await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers))[0] == 204


async def test_submissions_with_a_key_and_without_never_wait_for_each_other(service: Service) -> None:
    def sent(width: int) -> Coroutine[Any, Any, tuple[int, Any, Any]]:
        headers = {IDEMPOTENCY_KEY: f"submission-{width}"} if width % 2 else {}
        body = request_for(adapter(width)).model_dump(mode="json")
        return service.ask("POST", "/api/v1/blueprints", json=body, headers=headers)

    async with asyncio.timeout(30.0):  # they would for a minute, which is how long a writer waits for its turn
        answers = await asyncio.gather(*map(sent, range(1, 33)))
    assert {status for status, _, _ in answers} == {200}
    assert len({answer["blueprint_id"] for _, answer, _ in answers}) == 32


async def test_a_crowd_that_submits_with_keys_does_not_stand_in_the_way_of_the_forge(service: Service) -> None:
    await service.manager.submit(request_for(adapter(100)))
    crowd = [
        asyncio.create_task(
            service.ask(
                "POST",
                "/api/v1/blueprints",
                json=request_for(adapter(width)).model_dump(mode="json"),
                headers={IDEMPOTENCY_KEY: f"submission-{width}"},
            )
        )
        for width in range(1, 65)
    ]
    await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)
    assert await service.manager.claim("forge", lease_s=30.0) is not None
    assert sum(task.done() for task in crowd) < 16
    await asyncio.gather(*crowd)
