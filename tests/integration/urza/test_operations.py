"""What whoever runs the store sees of it: audit log, health, metrics, outages and faults."""

import io
import json

import pytest
from sqlalchemy.exc import OperationalError

from esper.contracts.store import KernelRecord
from esper.errors import ContractError, NotFound
from esper.services.clients.messages import Reply
from esper.telemetry.logs import to_terminal
from esper.testing.forging import adapter, request_for
from tests.integration.urza.service import ZERO, Service
from tools import openapi


async def test_every_write_is_in_the_audit_log_with_who_and_when_and_reads_are_not(service: Service) -> None:
    await service.client.submit(request_for(adapter()))
    await service.client.search_kernels()
    with pytest.raises(NotFound):
        await service.client.release("job-none", "w")
    _, log, _ = await service.ask("GET", "/api/v1/audit")
    assert [(entry["actor"], entry["action"], entry["subject"]) for entry in log] == [
        ("loopback", "POST", "/api/v1/blueprints")
    ]
    assert log[0]["details"]["request_id"]


async def test_health_readiness_metrics_and_status(service: Service) -> None:
    assert (await service.ask("GET", "/health"))[1] == {"status": "ok"}
    assert (await service.ask("GET", "/ready"))[1] == {"status": "ready"}
    await service.ask("GET", "/api/v1/kernels/" + ZERO)
    await service.ask("GET", "/wp-admin.php")
    _, body, _ = await service.ask("GET", "/metrics")
    text = body.decode()
    assert 'esper_urza_requests_total{endpoint="/api/v1/kernels/{kernel_id}",method="GET",status="404"} 1.0' in text
    assert 'endpoint="other",method="other",status="404"} 1.0' in text
    assert ZERO not in text
    _, status, _ = await service.ask("GET", "/status")
    assert (status["database"], status["draining"]) == ("sqlite", False)


async def test_the_client_reads_what_whoever_runs_the_store_wants_to_know(service: Service) -> None:
    await service.client.ready()
    status = await service.client.status()
    assert (status.database, status.draining) == ("sqlite", False)
    for width in (1, 2, 3):
        await service.client.submit(request_for(adapter(width)))
    log = await service.client.audit_log(limit=2)
    assert [entry.subject for entry in log] == ["/api/v1/blueprints"] * 2
    assert log[0].id > log[1].id
    older = await service.client.audit_log(subject="/api/v1/blueprints", before=log[1].id)
    assert [entry.id for entry in older] == [log[1].id - 1]
    assert await service.client.audit_log(subject="/nowhere") == []
    assert 'esper_urza_requests_total{endpoint="/api/v1/blueprints",method="POST"' in await service.client.metrics()


class _Broken:
    async def rows(self, *_: object) -> None:
        raise OperationalError("SELECT 1", {}, OSError("unable to open database file"))


async def test_an_outage_of_the_database_is_503_and_not_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.manager.database, "reader", _Broken())
    status, problem, headers = await service.ask("GET", "/ready")
    assert (status, problem["code"], headers["Retry-After"]) == (503, "ESP-4200", "1")


@pytest.mark.parametrize(
    ("reading", "path"), [("get_kernel", f"kernels/{ZERO}"), ("search_rows", "kernels/search")], ids=["by", "without"]
)
async def test_a_fault_of_the_service_tells_the_caller_nothing_but_an_id(
    service: Service, monkeypatch: pytest.MonkeyPatch, reading: str, path: str
) -> None:
    """By the framework, and without it."""

    async def faulty(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(service.manager, reading, faulty)
    written = io.StringIO()
    with to_terminal(written, json=True):
        status, problem, headers = await service.ask("GET", f"/api/v1/{path}")
    assert (status, problem["request_id"]) == (500, headers["X-Request-Id"])
    assert "secret detail" not in json.dumps(problem)
    assert "secret detail" in written.getvalue()


def test_the_committed_description_is_what_the_service_gives() -> None:
    assert openapi.main(["--check"]) == 0, "run make contracts"


def test_a_client_that_expects_another_thing_says_so() -> None:
    with pytest.raises(ContractError, match="no KernelRecord"):
        Reply(200, {}, b"[]").read_as(KernelRecord)
