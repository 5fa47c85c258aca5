"""Requests drawn from the service's own description, right and wrong ones: none may be a fault of the service."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import CHECKS
from schemathesis.schemas import APIOperation

from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from esper.testing.store_server import served
from tools.openapi import SERVICES

CHECKED = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@dataclass
class Running:
    """A store in a thread of its own, with things in it.

    Attributes:
        known: Real ids by the name of the parameter that takes them.
        statuses: What was answered, and how often.
    """

    address: str
    token: str
    known: dict[str, list[str]]
    statuses: dict[int, int] = field(default_factory=dict)


@contextmanager
def running(folder: Path, url: str) -> Iterator[Running]:
    started, ending = threading.Event(), threading.Event()
    found: list[Running] = []

    async def serve() -> None:
        config = UrzaConfig(root=folder, require_keys=True, requests_per_s=0)
        manager = await KernelManager.at(url, LocalBlobs(folder / "blobs"))
        async with manager, served(manager, config) as address:
            token, _ = await ApiKeys(manager.database).create("fuzz", ["admin"])
            found.append(Running(address, token, await _filled(manager)))
            started.set()
            await asyncio.to_thread(ending.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(30)
        yield found[0]
    finally:
        ending.set()
        thread.join(30)


async def _filled(manager: KernelManager) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {"blueprint_id": [], "kernel_id": [], "job_id": [], "digest": []}
    for width in (1, 2, 3):
        await manager.submit(request_for(adapter(width), tags=("a", "b")))
        job = await manager.claim("w", lease_s=3600)
        assert job is not None
        ids["blueprint_id"].append(job.blueprint_id)
        ids["job_id"].append(job.job_id)
        if width < 3:
            artifact = artifact_of(job.blueprint_id, bytes(width) * 1000)
            await manager.complete(job.job_id, "w", artifact, verdict_on(artifact, throughput=float(width)))
            ids["kernel_id"].append(artifact.artifact_id)
    return ids


def asked(service: Running, examples: int, first_seed: int) -> None:
    """Draw requests for every operation, send them, and check the answers."""
    schema = schemathesis.openapi.from_dict(SERVICES["urza"].openapi())
    for number, operation in enumerate(schema.get_all_operations()):
        _asked_of(operation.ok(), service, examples, first_seed + number)


def _asked_of(operation: APIOperation[Any, Any, Any, Any], service: Running, examples: int, number: int) -> None:
    checks = CHECKS.get_by_names(list(CHECKED))
    keyed = {"Authorization": f"Bearer {service.token}"}

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(), real=st.booleans())
    def send(case: Case, real: bool) -> None:
        if real:
            _made_real(case, service.known, number)
        answer = case.call(base_url=service.address, headers=keyed, timeout=20)
        service.statuses[answer.status_code] = service.statuses.get(answer.status_code, 0) + 1
        case.validate_response(answer, checks=checks, headers=keyed)

    send()


def _made_real(case: Case, known: dict[str, list[str]], number: int) -> None:
    """Put ids that exist in the place of those that were drawn, and a design that is one."""
    for name in case.path_parameters or {}:
        if known.get(name):
            case.path_parameters[name] = known[name][number % len(known[name])]
    body = case.body
    if isinstance(body, dict) and "architecture_ir" in body:
        body["architecture_ir"] = adapter(1 + number % 5).to_json()
    if isinstance(body, dict) and "worker" in body:
        body["worker"] = "w"


@pytest.mark.timeout(300)
def test_hundreds_of_drawn_requests_meet_no_fault(tmp_path: Path, database_url: str) -> None:
    with running(tmp_path, database_url) as service:
        asked(service, 6, first_seed=0)
    assert sum(service.statuses.values()) >= 150
    assert {200, 404, 422} <= service.statuses.keys()
    assert not [status for status in service.statuses if status >= 500]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_drawn_requests_meet_no_fault(tmp_path: Path, database_url: str) -> None:
    with running(tmp_path, database_url) as service:
        asked(service, 190, first_seed=1)
    assert sum(service.statuses.values()) >= 5000
    assert not [status for status in service.statuses if status >= 500]


def test_a_fault_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def faulty(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(KernelManager, "get_report", faulty)
    with (
        running(tmp_path, f"sqlite:///{tmp_path / 'library.db'}") as service,
        pytest.raises(BaseException, match="Server error"),
    ):
        asked(service, 2, first_seed=0)
