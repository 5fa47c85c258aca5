"""The store over HTTP, as a caller sees it who has nothing but a connection."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from esper.cli.app import app
from esper.contracts.kernel import BlueprintContract, BuildSpec, KernelStatus
from esper.contracts.problems import IDEMPOTENCY_KEY
from esper.contracts.store import KernelQuery, KernelRecord
from esper.contracts.store_calls import ArtifactHead
from esper.errors import Conflict, ContractError, IllegalTransition, KernelRejected, NotFound, StoreUnavailable
from esper.ir import digest_of
from esper.services.clients import UrzaClient
from esper.services.clients.messages import Reply
from esper.services.urza.database import Database
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.services.urza.rest.config import UrzaConfig
from esper.services.urza.rest.idempotency import Idempotency
from esper.telemetry.logs import to_terminal
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from esper.testing.servers import free_port
from esper.testing.store_server import served
from tools import openapi

ZERO = "sha256:" + "0" * 64


@dataclass
class Service:
    """A running store, with three ways to reach it."""

    address: str
    manager: KernelManager
    client: UrzaClient
    raw: aiohttp.ClientSession

    async def ask(self, method: str, path: str, **options: Any) -> tuple[int, Any, "aiohttp.typedefs.LooseHeaders"]:
        async with self.raw.request(method, self.address + path, **options) as answer:
            body = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            return answer.status, json.loads(body) if "json" in kind else body, answer.headers

    async def kernel(self, width: int = 4, *, throughput: float | None = None, tags: tuple[str, ...] = ()) -> str:
        """Take a blueprint all the way to a validated kernel."""
        await self.manager.submit(request_for(adapter(width), tags=tags))
        job = await self.manager.claim("w", lease_s=30.0)
        assert job is not None
        artifact = artifact_of(job.blueprint_id, f"kernel {width} ".encode() * 100)
        await self.manager.complete(job.job_id, "w", artifact, verdict_on(artifact, throughput=throughput))
        return artifact.artifact_id


@asynccontextmanager
async def running(folder: Path, **settings: Any) -> AsyncIterator[Service]:
    async with (
        await KernelManager.open(folder / "library") as manager,
        served(manager, UrzaConfig.model_validate({"root": folder} | settings)) as address,
        UrzaClient(address) as client,
        aiohttp.ClientSession() as raw,
    ):
        yield Service(address, manager, client, raw)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(tmp_path) as service:
        yield service


# -- the specified endpoints ---------------------------------------------------------------------------------------------


async def test_a_blueprint_is_submitted_as_specified_also_as_a_string(service: Service) -> None:
    body = {"name": "AttentionKernel", "architecture_ir": json.dumps(adapter().to_json()), "tags": ["attention"]}
    status, answer, _ = await service.ask("POST", "/api/v1/blueprints", json=body)
    assert (status, answer["blueprint_id"], answer["status"]) == (200, adapter().digest, "queued")
    assert answer["queue_position"] == 1


async def test_a_search_answers_the_specified_array_and_leads_to_the_next_page(service: Service) -> None:
    ids = [await service.kernel(width, throughput=10.0 * width, tags=("mine",)) for width in (1, 2, 3)]
    ids.append(await service.kernel(4, tags=("mine",)))
    status, first, headers = await service.ask("GET", "/api/v1/kernels/search?tags=mine&tags=other&limit=3")
    assert status == 200
    assert [kernel["kernel_id"] for kernel in first] == [ids[2], ids[1], ids[0]]
    assert set(first[0]) == {"kernel_id", "blueprint_id", "tags", "performance", "device"}
    link = headers["Link"]
    status, rest, headers = await service.ask("GET", link.partition(">")[0].removeprefix("<"))
    assert [(kernel["kernel_id"], kernel["performance"]) for kernel in rest] == [(ids[3], None)]
    assert "Link" not in headers


@pytest.mark.parametrize(
    "query", ["status=nonsense", "min_performance=nan", "limit=0", "limit=100000", "unknown=1", "cursor=x"]
)
async def test_a_query_that_cannot_be_used_is_refused_and_says_where(service: Service, query: str) -> None:
    status, problem, headers = await service.ask("GET", f"/api/v1/kernels/search?{query}")
    assert (status, headers["Content-Type"]) == (422, "application/problem+json")
    assert query.partition("=")[0] in problem["detail"]
    assert problem["code"].startswith("ESP-3")


async def test_the_client_finds_what_a_name_a_device_and_a_page_ask_for(service: Service) -> None:
    ids = {await service.kernel(width, throughput=float(width), tags=("a",)) for width in (1, 2, 3, 4)}
    found, cursor = set(), None
    for _ in range(4):
        page = await service.client.search(KernelQuery(tags=["a"], has_params=None, limit=1, cursor=cursor))
        found |= {kernel.kernel_id for kernel in page.kernels}
        cursor = page.cursor
    assert (found, cursor) == (ids, None)
    summaries = await service.client.search_kernels(tags=["a"], status="validated", min_performance=3.0)
    assert [summary.performance for summary in summaries] == [4.0, 3.0]


# -- what has a content address ------------------------------------------------------------------------------------------


async def test_bytes_and_designs_never_change_and_say_so(service: Service) -> None:
    kernel_id = await service.kernel()
    for path, address in (
        (f"/api/v1/kernels/{kernel_id}/bytes", kernel_id),
        (f"/api/v1/blueprints/{adapter().digest}/ir", adapter().digest),
    ):
        for _ in range(2):  # from the store, then from memory
            async with service.raw.get(service.address + path) as answer:
                assert digest_of(await answer.read()) == address
                assert answer.headers["ETag"] == f'"{address}"'
                assert "immutable" in answer.headers["Cache-Control"]
        tags = f'"else", W/"{address}"'
        async with service.raw.get(service.address + path, headers={"If-None-Match": tags}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")


async def test_a_record_that_may_change_has_a_tag_of_its_content(service: Service) -> None:
    path = f"/api/v1/kernels/{await service.kernel()}"
    _, _, headers = await service.ask("GET", path)
    tag = {"If-None-Match": headers["ETag"]}
    assert (await service.ask("GET", path, headers=tag))[0] == 304
    assert "no-cache" in headers["Cache-Control"]
    await service.ask("PUT", path + "/status", json={"status": "retired"})
    assert (await service.ask("GET", path, headers=tag))[0] == 200


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)), ("bytes=5-", 206, slice(5, None)), ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-99999", 206, slice(None)), ("bytes=9-5", 200, slice(None)), ("bytes=0-1,3-4", 200, slice(None)),
        ("lines=1-2", 200, slice(None)), ("bytes=99999-", 416, None), ("bytes=-0", 416, None),
    ],
)  # fmt: skip
async def test_a_part_of_the_bytes_can_be_read(service: Service, wanted: str, status: int, part: slice | None) -> None:
    kernel_id = await service.kernel()
    whole = await service.manager.read(kernel_id)
    async with service.raw.get(
        f"{service.address}/api/v1/kernels/{kernel_id}/bytes", headers={"Range": wanted}
    ) as answer:
        body = await answer.read()
        assert answer.status == status
        if part is not None:
            assert body == whole[part]


async def test_a_retired_kernel_is_handed_out_no_more_not_even_from_memory(service: Service) -> None:
    kernel_id = await service.kernel()
    assert await service.client.read(kernel_id)
    await service.client.set_kernel_status(kernel_id, KernelStatus.RETIRED)
    with pytest.raises(KernelRejected):
        await service.client.read(kernel_id)
    with pytest.raises(IllegalTransition):
        await service.client.set_kernel_status(kernel_id, KernelStatus.PENDING_VALIDATION)


async def test_bytes_are_streamed_into_a_file_that_is_whole_or_not_there(service: Service, tmp_path: Path) -> None:
    kernel_id = await service.kernel()
    target = tmp_path / "kernel.bin"
    size = await service.client.download(kernel_id, target)
    assert (digest_of(target.read_bytes()), size) == (kernel_id, target.stat().st_size)
    with pytest.raises(NotFound):
        await service.client.download(ZERO, tmp_path / "nothing.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"kernel.bin", "library"}


async def test_a_kernel_is_uploaded_and_opens_with_its_report_only(service: Service) -> None:
    await service.client.submit(request_for(adapter()))
    artifact = artifact_of(adapter().digest, os.urandom(700_000))
    kernel = await service.client.upload_kernel(artifact)
    assert kernel.status is KernelStatus.PENDING_VALIDATION
    assert (await service.client.upload_kernel(artifact)).created_at == kernel.created_at
    with pytest.raises(KernelRejected):
        await service.client.read(artifact.artifact_id)
    assert (await service.client.store_report(verdict_on(artifact))).status is KernelStatus.VALIDATED
    assert await service.client.read(artifact.artifact_id) == artifact.kernel_binary
    with pytest.raises(Conflict):
        await service.client.store_report(verdict_on(artifact))
    with pytest.raises(NotFound):
        await service.client.upload_kernel(artifact_of(ZERO, b"of nothing"))


async def test_bytes_are_refused_under_another_address(service: Service) -> None:
    status, problem, _ = await service.ask("PUT", f"/api/v1/blobs/{ZERO}", data=b"something else")
    assert (status, digest_of(b"something else")[:19] in problem["why"]) == (422, True)
    await service.client.submit(request_for(adapter()))
    head = ArtifactHead.of(artifact_of(adapter().digest, b"something else")).model_copy(update={"artifact_id": ZERO})
    assert (await service.ask("POST", "/api/v1/kernels", json=head.model_dump()))[0] == 404


async def test_bytes_of_any_length_go_both_ways_in_pieces(service: Service, tmp_path: Path) -> None:
    await service.client.submit(request_for(adapter()))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3_000_001))
    stored = await service.client.upload_bytes(source)
    artifact = artifact_of(adapter().digest, source.read_bytes())
    await service.client.upload_kernel(artifact)
    await service.client.store_report(verdict_on(artifact))
    assert await service.client.download(stored.digest, target) == 3_000_001
    assert target.read_bytes() == source.read_bytes()
    wanted = {"Range": "bytes=1500000-2500000"}
    status, part, headers = await service.ask("GET", f"/api/v1/kernels/{stored.digest}/bytes", headers=wanted)
    assert (status, part) == (206, artifact.kernel_binary[1_500_000:2_500_001])
    assert headers["Content-Range"] == "bytes 1500000-2500000/3000001"
    assert (await service.ask("GET", f"/api/v1/kernels/{stored.digest}/link"))[1] == {"url": None}


async def test_damage_in_a_long_kernel_ends_the_download_and_leaves_no_file(service: Service, tmp_path: Path) -> None:
    await service.client.submit(request_for(adapter()))
    artifact = artifact_of(adapter().digest, os.urandom(3_000_000))
    await service.client.upload_kernel(artifact)
    await service.client.store_report(verdict_on(artifact))
    path = tmp_path / "library" / "blobs" / "sha256" / artifact.artifact_id[7:9] / artifact.artifact_id[7:]
    path.chmod(0o644)
    damaged = bytearray(artifact.kernel_binary)
    damaged[1_000_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StoreUnavailable):
        await service.client.download(artifact.artifact_id, tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_a_blueprint_is_put_under_its_own_address_with_its_parent(service: Service) -> None:
    parent, child = adapter(2), adapter(3)
    for ir, origin in ((parent, None), (child, parent.digest)):
        contract = BlueprintContract(blueprint_id="mine", name=ir.name, architecture_ir=ir.to_json(), tags=["x"])
        assert await service.client.store_blueprint(contract, origin) == ir.digest
    assert [entry.blueprint_id for entry in await service.client.get_ancestors(child.digest)] == [
        child.digest,
        parent.digest,
    ]
    assert [entry.depth for entry in await service.client.get_descendants(parent.digest)] == [0, 1]
    assert (
        digest_of(
            json.dumps(
                await service.client.get_architecture(child.digest), sort_keys=True, separators=(",", ":")
            ).encode()
        )
        == child.digest
    )
    body = {"blueprint": contract.model_dump(mode="json")}
    assert (await service.ask("PUT", f"/api/v1/blueprints/{ZERO}", json=body))[0] == 422


async def test_no_build_yet_is_no_content_and_a_refused_one_says_why(service: Service) -> None:
    await service.client.submit(request_for(adapter()))
    path = f"/api/v1/blueprints/{adapter().digest}/kernel"
    assert (await service.ask("GET", path))[0] == 204
    job = await service.client.claim("w", lease_s=10)
    assert job is not None
    await service.client.fail(job.job_id, "w", "no body for that", retry=False)
    with pytest.raises(KernelRejected, match="no body"):
        await service.client.find(adapter().digest, BuildSpec())


# -- requests that are sent twice ----------------------------------------------------------------------------------------


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
    async with running(tmp_path, idempotency_h=1e-9) as service:
        await service.manager.submit(request_for(adapter()))
        headers, body = {IDEMPOTENCY_KEY: "k"}, {"worker": "w", "lease_s": 30}
        assert (await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers))[0] == 200
        await Idempotency(service.manager.database, 1e-9).forget_old()
        assert (await service.ask("POST", "/api/v1/jobs/claim", json=body, headers=headers))[0] == 204


# -- whoever runs it -----------------------------------------------------------------------------------------------------


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


class _Broken:
    async def __aenter__(self) -> None:
        raise StoreUnavailable("the library's database does not answer")

    async def __aexit__(self, *_: object) -> None: ...


async def test_an_outage_of_the_database_is_503_and_not_ready(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Database, "reading", lambda _: _Broken())
    status, problem, headers = await service.ask("GET", "/ready")
    assert (status, problem["code"], headers["Retry-After"]) == (503, "ESP-4200", "1")


async def test_a_fault_of_the_service_tells_the_caller_nothing_but_an_id(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def faulty(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(service.manager, "get_kernel", faulty)
    written = io.StringIO()
    with to_terminal(written, json=True):
        status, problem, headers = await service.ask("GET", f"/api/v1/kernels/{ZERO}")
    assert (status, problem["request_id"]) == (500, headers["X-Request-Id"])
    assert "secret detail" not in json.dumps(problem)
    assert "secret detail" in written.getvalue()


def test_the_committed_description_is_what_the_service_gives() -> None:
    assert openapi.main(["--check"]) == 0, "run make contracts"


# -- as a process --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def process(folder: Path, *options: str) -> AsyncIterator[tuple[str, "subprocess.Popen[bytes]", Path]]:
    port, log = free_port(), folder / "log"
    command = [
        sys.executable,
        "-m",
        "esper.cli",
        "serve",
        "urza",
        "--port",
        str(port),
        "--root",
        str(folder / "lib"),
        "--json",
        *options,
    ]
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)  # noqa: ASYNC220
    try:
        async with asyncio.timeout(60):
            while not _answers(port):
                assert running.poll() is None, log.read_text()
                await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}", running, log
    finally:
        running.kill()
        running.wait(10)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return True
    except OSError:
        return False


async def test_the_process_has_no_torch_and_ends_what_is_in_hand_when_it_is_told_to_stop(tmp_path: Path) -> None:
    async with process(tmp_path) as (address, running, log), UrzaClient(address) as client:
        await client.submit(request_for(adapter()))
        maps = Path(f"/proc/{running.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()
        slow = asyncio.create_task(client.upload_bytes(os.urandom(300_000)))
        await asyncio.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        await slow
        await asyncio.to_thread(running.wait, 20)
        assert "Traceback" not in log.read_text()


def test_importing_the_service_brings_no_torch(tmp_path: Path) -> None:
    code = "import esper.services.urza.main, esper.services.urza.rest.server, esper.cli.serve, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_keys_are_made_listed_rotated_and_revoked_from_the_shell(tmp_path: Path) -> None:
    def esper(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["keys", *arguments, "--root", str(tmp_path / "lib")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    made = json.loads(esper("create", "ci", "--scope", "read", "--days", "30", "--json"))
    fresh = json.loads(esper("rotate", made["key_id"], "--overlap-hours", "0", "--json"))
    assert (fresh["name"], fresh["scopes"]) == ("ci", ["read"])
    esper("revoke", fresh["key_id"])
    listed = json.loads(esper("list", "--json"))["keys"]
    assert [key["valid"] for key in listed] == [False, False]
    assert made["key"] not in json.dumps(listed)


async def test_a_key_ends_when_it_expires_and_an_old_one_stays_for_the_overlap(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path) as manager:
        clock = ManualClock()
        keys = ApiKeys(manager.database, clock)
        short, _ = await keys.create("short", ["read"], lifetime=timedelta(hours=1))
        clock.advance(3599)
        assert await keys.check(short) is not None
        clock.advance(1)
        assert await keys.check(short) is None
        old, info = await keys.create("long", ["admin", "read"])
        new, _ = await keys.rotate(info.key_id, overlap=timedelta(hours=1))
        clock.advance(3599)
        assert await keys.check(old) is not None
        assert await keys.check(new) is not None
        clock.advance(2)
        assert await keys.check(old) is None
        await keys.revoke(info.key_id)
        assert await keys.check(old) is None
        assert await keys.check(new) is not None
        for wrong in ("", "x", new[:-1], new + "x", old.replace("esper_", "esper-"), "\ud800"):
            assert await keys.check(wrong) is None


def test_a_client_that_expects_another_thing_says_so() -> None:
    with pytest.raises(ContractError, match="no KernelRecord"):
        Reply(200, {}, b"[]").read_as(KernelRecord)
