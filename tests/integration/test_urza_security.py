"""Callers of the store who mean no good."""

import asyncio
import gzip
import hmac
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.typedefs import LooseHeaders
from sqlalchemy import func, select
from yarl import URL

from esper.services.rest.bodies import depth_of
from esper.services.rest.callers import OPEN_PATHS
from esper.services.rest.config import is_loopback
from esper.services.rest.rates import Rates
from esper.services.urza.access import ApiKeyRow, AuditRow
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.services.urza.main import app
from esper.services.urza.models import Blueprint, Kernel
from esper.services.urza.rest.config import UrzaConfig
from esper.telemetry.logs import to_terminal
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from esper.testing.store_server import served

ZERO = "sha256:" + "0" * 64
BODIES: dict[str, Any] = {
    "BlueprintSubmissionRequest": {"name": "n", "architecture_ir": {}},
    "Claim": {"worker": "w", "lease_s": 1},
}


@dataclass
class Target:
    """A store that needs keys, with one key of each scope."""

    address: str
    manager: KernelManager
    keys: dict[str, str]
    raw: aiohttp.ClientSession

    async def ask(
        self,
        method: str,
        path: str,
        *,
        key: str | None = "admin",
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> tuple[int, Any, LooseHeaders]:
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {self.keys.get(key, key)}"
        url = URL(self.address + path, encoded=True)
        async with self.raw.request(method, url, headers=sent, **options) as answer:
            body = await answer.read()
            kind = answer.headers.get("Content-Type", "")
            return answer.status, json.loads(body) if "json" in kind and body else body, answer.headers


@asynccontextmanager
async def target(folder: Path, **settings: Any) -> AsyncIterator[Target]:
    config = UrzaConfig.model_validate({"root": folder, "require_keys": True, "requests_per_s": 0} | settings)
    async with await KernelManager.open(folder / "library") as manager, served(manager, config) as address:
        keys = ApiKeys(manager.database)
        made = {scope: (await keys.create(scope, [scope]))[0] for scope in ("read", "write", "admin")}
        async with aiohttp.ClientSession(skip_auto_headers=["User-Agent"]) as raw:
            yield Target(address, manager, made, raw)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Target]:
    async with target(tmp_path) as store:
        yield store


async def raw_answer(address: str, data: bytes, *, limit_s: float = 10.0, pause_s: float = 0.0) -> bytes:
    """Send bytes as they are, and return what comes back until the connection ends."""
    url = URL(address)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        async with asyncio.timeout(limit_s):
            step = 1 if pause_s else max(1, len(data))
            for start in range(0, len(data), step):
                writer.write(data[start : start + step])
                await writer.drain()
                await asyncio.sleep(pause_s)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


# -- who may what --------------------------------------------------------------------------------------------------------


def routes() -> Iterator[tuple[str, str, str]]:
    """Return every operation of the service with the scope that it takes, told apart from how the service does it."""
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            if path in OPEN_PATHS:
                yield method.upper(), path, ""
            elif path == "/api/v1/audit" or (path.endswith("/status") and method == "put"):
                yield method.upper(), path, "admin"
            else:
                yield method.upper(), path, "read" if method == "get" else "write"


async def test_every_route_refuses_callers_without_a_key_and_with_too_few_rights(store: Target) -> None:
    order = ("read", "write", "admin")
    seen = 0
    for method, path, needed in routes():
        seen += 1
        concrete = re.sub(r"\{(blueprint_id|kernel_id|digest)\}", ZERO, path).replace("{job_id}", "job-1")
        for key in (None, "esper_0000000000000000_" + "A" * 43, *order):
            status, problem, headers = await store.ask(method, concrete, key=key, data=b"{}")
            if not needed:
                assert status == 200 if key in (None, *order) else status in (200, 401), (method, path)
            elif key not in order:
                assert (status, problem["code"]) == (401, "ESP-7510"), (method, path, key)
                assert "Bearer" in headers["WWW-Authenticate"]  # type: ignore[call-overload, index]
            elif order.index(key) < order.index(needed):
                assert (status, problem["code"]) == (403, "ESP-7511"), (method, path, key)
            else:
                assert status not in (401, 403), (method, path, key)
                assert status < 500, (method, path, key)
    assert seen > 25


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Basic YWRtaW46YWRtaW4=", "bearer x y", "Bearer \u00e9", "x" * 5000]
)
async def test_what_is_no_key_opens_nothing(store: Target, given: str) -> None:
    async with store.raw.get(store.address + "/status", headers={"Authorization": given}) as answer:
        assert answer.status in (401, 400)


async def test_methods_and_paths_that_do_not_exist_tell_strangers_nothing(store: Target) -> None:
    for method, path in (
        ("GET", "/admin"),
        ("DELETE", "/api/v1/kernels/" + ZERO),
        ("TRACE", "/status"),
        ("POST", "/metrics"),
    ):
        assert (await store.ask(method, path, key=None))[0] == 401
        status, problem, _ = await store.ask(method, path)
        assert status in (404, 405)
        assert problem["code"] in ("ESP-5000", "ESP-3413")


async def test_a_revoked_key_opens_nothing_after_seconds_and_another_process_at_once(tmp_path: Path) -> None:
    clock = ManualClock()
    config = UrzaConfig(root=tmp_path, require_keys=True)
    async with (
        await KernelManager.open(tmp_path / "library") as manager,
        served(manager, config, clock=clock) as address,
    ):
        keys = ApiKeys(manager.database, clock)
        token, info = await keys.create("x", ["read"])
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as raw:
            assert (await raw.get(address + "/status")).status == 200
            await keys.revoke(info.key_id)
            clock.advance(5)
            assert (await raw.get(address + "/status")).status == 401


async def test_keys_are_compared_in_constant_time_and_unknown_ones_are_compared_too(
    store: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[int, int]] = []
    honest = hmac.compare_digest

    def noting(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return honest(first, second)

    monkeypatch.setattr("esper.services.urza.keys.hmac.compare_digest", noting)
    known = store.keys["read"]
    keys = ApiKeys(store.manager.database)
    for token in (
        known,
        known[:-1] + ("A" if known[-1] != "A" else "B"),
        "esper_" + "0" * 16 + "_" + "A" * 43,
        "nonsense",
    ):
        await keys.check(token)
    assert len(compared) == 4
    assert len(set(compared)) == 1
    code = (Path(__file__).parents[2] / "src/esper/services/urza/keys.py").read_text(encoding="utf-8")
    assert not re.search(r"key_hash\s*==|==\s*\w*\.?key_hash", code)


async def test_the_database_holds_no_key(store: Target) -> None:
    files = list((Path(store.manager.database._sessions.kw["bind"].url.database).parent).glob("library.db*"))
    held = b"".join(path.read_bytes() for path in files)
    for token in store.keys.values():
        assert token.split("_", 2)[2].encode() not in held
    async with store.manager.database.reading() as session:
        rows = (await session.scalars(select(ApiKeyRow))).all()
    assert len({row.key_hash for row in rows}) == 3


# -- without keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"Host": "localhost:1"}, 200), ({"Host": "[::1]:80"}, 200), ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403), ({"Host": "localhost.evil.example:8000"}, 403), ({"Host": "a:b:c"}, 403),
        ({"X-Forwarded-For": "10.0.0.1"}, 403), ({"Forwarded": "for=10.0.0.1"}, 403),
    ],
)  # fmt: skip
async def test_without_keys_only_this_machine_by_its_own_name_is_served(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    async with target(tmp_path, require_keys=False) as store:
        assert (await store.ask("GET", "/status", key=None, headers=headers))[0] == status


def test_every_address_beyond_loopback_makes_keys_necessary() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8", "::ffff:127.0.0.1"):
        assert is_loopback(host)
        assert not UrzaConfig(host=host).needs_keys
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "", "127.0.0.1.example.org", "::ffff:10.0.0.1"):
        assert UrzaConfig(host=host).needs_keys


# -- names and paths -----------------------------------------------------------------------------------------------------

TRICKS = (
    "/abs", "..", "../..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5cwin.ini", "sha256:%2e%2e/%2e%2e/etc/passwd",
    "sha256:" + "0" * 63, "sha256:" + "G" * 64, "SHA256:" + "0" * 64, ZERO + "%00", ZERO + "%0a", "%ef%bc%8e%ef%bc%8e",
    "%c0%ae%c0%ae", "file:%2f%2f%2fetc%2fpasswd", "http:%2f%2f169.254.169.254%2f", "%E2%80%AE", "%ff%fe", "x" * 4000,
    "sha256:%D9%A0" + "0" * 63,
)  # fmt: skip


async def test_no_name_leads_out_of_the_library(store: Target, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"not yours")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for trick in TRICKS:
        for method, path in (
            ("GET", f"/api/v1/kernels/{trick}/bytes"), ("GET", f"/api/v1/kernels/{trick}"), ("PUT", f"/api/v1/blobs/{trick}"),
            ("GET", f"/api/v1/blueprints/{trick}/ir"), ("GET", f"/{trick}"), ("GET", f"/api/v1/kernels/{trick}/link"),
            ("GET", f"/api/v1/kernels/{trick}/forms"), ("GET", f"/api/v1/kernels/{ZERO}/forms/{trick}"),
        ):  # fmt: skip
            status, body, _ = await store.ask(method, path, data=b"payload" if method == "PUT" else None)
            assert 400 <= status < 500, (method, path, status)
            assert "not yours" not in str(body)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == set()


SQL = ("'", '"', "';--", "' OR '1'='1", "1; DROP TABLE kernels;--", "%", "_", "\\", "%' ESCAPE '", "NULL", "${jndi:x}", "\u2019",
       "a\u0000b", "{{7*7}}", "/*", "0x27", "' UNION SELECT key_hash FROM api_keys --")  # fmt: skip


async def test_words_of_sql_are_words_everywhere(store: Target) -> None:
    await store.manager.submit(request_for(adapter(), tags=("plain",)))
    job = await store.manager.claim("w", lease_s=60)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"bytes")
    await store.manager.complete(job.job_id, "w", artifact, verdict_on(artifact))
    fields = ("tags", "name", "device", "cursor", "status", "match", "blueprint_id")
    for word in SQL:
        for path in ("/api/v1/kernels/search", "/api/v1/kernels", "/api/v1/blueprints"):
            for field in fields:
                url = URL(store.address + path).with_query({field: word})
                async with store.raw.get(url, headers={"Authorization": f"Bearer {store.keys['read']}"}) as answer:
                    body = await answer.json(content_type=None)
                    assert answer.status < 500, (path, field, word)
                    assert "key_hash" not in str(body).replace(word, "")
                    if answer.status == 200 and field in ("tags", "device"):
                        assert body == [] or path == "/api/v1/blueprints", (path, field, word)
        submission = {
            **request_for(adapter(2)).model_dump(mode="json"),
            "name": f"x{word}",
            "tags": [word],
            "submitted_by": word,
        }
        assert (await store.ask("POST", "/api/v1/blueprints", json=submission))[0] < 500
        for path, body in (
            ("/api/v1/jobs/claim", {"worker": word, "lease_s": 1}), ("/api/v1/jobs/job-1/release", {"worker": word}),
            ("/api/v1/jobs/job-1/fail", {"worker": "w", "reason": word, "retry": True}),
        ):  # fmt: skip
            assert (await store.ask("POST", path, json=body))[0] < 500
        assert (await store.ask("GET", URL("/api/v1/audit").with_query({"subject": word}).raw_path_qs))[0] < 500
    async with store.manager.database.reading() as session:
        assert await session.scalar(select(func.count()).select_from(Kernel)) == 1
        assert await session.scalar(select(func.count()).select_from(Blueprint)) >= 1


# -- bodies --------------------------------------------------------------------------------------------------------------


async def test_a_body_that_is_too_long_is_refused_before_and_while_it_is_read(store: Target) -> None:
    limit = UrzaConfig().max_body_bytes
    status, problem, _ = await store.ask("POST", "/api/v1/blueprints", data=io.BytesIO(b"x" * (limit + 1)))
    assert (status, problem["code"]) == (413, "ESP-3410")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(limit // 65536 + 2):
            yield b"x" * 65536

    status, problem, _ = await store.ask("POST", "/api/v1/blueprints", data=endless())
    assert (status, problem["code"]) == (413, "ESP-3410")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"name":"n","architecture_ir":{"a":[{"b":'])
async def test_deep_nesting_is_refused_quickly(store: Target, opening: bytes) -> None:
    status, problem, _ = await store.ask(
        "POST", "/api/v1/blueprints", data=opening * 20_000, headers={"Content-Type": "application/json"}
    )
    assert (status, problem["code"]) == (413, "ESP-3410")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"\xff\xfe", b'{"worker":"w","lease_s":NaN}', b'{"worker":"w","lease_s":1e999}',
        b'{"worker":"w","worker":"v","lease_s":1}', b'{"worker":"\\ud800","lease_s":1}',
        b'{"worker":"w","lease_s":' + b"9" * 5000 + b"}",
        b'[1,2]', b'"text"', b'null', b'{"worker":"w","lease_s":-1}', b'{"worker":"w","lease_s":1,"more":1}',
        b'{"worker":"","lease_s":1}', b'{"worker":"' + b"w" * 129 + b'","lease_s":1}', b'{"worker":"a\\u0000","lease_s":1}',
    ],
)  # fmt: skip
async def test_json_that_is_not_right_is_a_problem_and_no_fault(store: Target, body: bytes) -> None:
    status, problem, headers = await store.ask(
        "POST", "/api/v1/jobs/claim", data=body, headers={"Content-Type": "application/json"}
    )
    if status != 204:  # a zero byte is a character like others to SQLite
        assert 400 <= status < 500
        assert headers["Content-Type"] == "application/problem+json"  # type: ignore[call-overload, index]
        assert problem["code"].startswith("ESP-3")


@pytest.mark.parametrize("packing", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, gzip", "x-unknown"])
async def test_compressed_bodies_are_not_unpacked_at_all(store: Target, packing: str) -> None:
    bomb = gzip.compress(b"0" * 10_000_000)
    status, problem, _ = await store.ask(
        "POST",
        "/api/v1/blueprints",
        data=bomb,
        headers={"Content-Encoding": packing, "Content-Type": "application/json"},
    )
    assert (status, problem["code"]) == (415, "ESP-3412")


async def test_a_slow_body_and_a_slow_head_are_given_up(tmp_path: Path) -> None:
    async with target(tmp_path, body_limit_s=0.3, stall_limit_s=0.3, header_limit_s=0.3) as store:
        token = store.keys["write"].encode()
        head = b"POST /api/v1/blueprints HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token
        body = head + b"\r\nContent-Type: application/json\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n{"
        assert b" 408 " in (await raw_answer(store.address, body, limit_s=5))
        assert await raw_answer(store.address, b"GET /hea", limit_s=5) == b""
        assert await raw_answer(store.address, b"", limit_s=5) == b""
        slow = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 100
        assert await raw_answer(store.address, slow, limit_s=5, pause_s=0.02) == b""
        put = f"PUT /api/v1/blobs/{ZERO} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ".encode() + token
        put += b"\r\nContent-Length: 100000\r\nConnection: close\r\n\r\nabc"
        assert b" 408 " in (await raw_answer(store.address, put, limit_s=5))
        assert not list((tmp_path / "library" / "blobs").rglob("*.tmp"))


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(20_000)) + b"\r\n",
        b"\x00\x01\x02", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /api/v1/jobs/claim HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/jobs/claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/jobs/claim HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
    ],
)  # fmt: skip
async def test_heads_that_are_wrong_or_too_large_end_the_connection_and_not_the_service(
    store: Target, request_: bytes
) -> None:
    answer = await raw_answer(store.address, request_)
    assert answer == b"" or b" 400 " in answer or b" 401 " in answer
    assert b"Traceback" not in answer
    assert (await store.ask("GET", "/health", key=None))[0] == 200


async def test_a_body_shorter_than_was_said_stores_nothing(store: Target, tmp_path: Path) -> None:
    url = URL(store.address)
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"PUT /api/v1/blobs/{ZERO} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {store.keys['write']}\r\n"
    writer.write(head.encode() + b"Content-Length: 1000\r\n\r\nabc")
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    await asyncio.sleep(0.2)
    assert [path for path in (tmp_path / "library" / "blobs").rglob("*") if path.is_file()] == []
    assert (await store.ask("GET", "/ready"))[0] == 200


def test_brackets_within_strings_are_no_nesting() -> None:
    assert depth_of(b'{"a": "[[[[{{{{", "b": "\\"[[[", "c": [1, [2]]}') == 3
    assert depth_of(b'["\\\\", [[]]]') == 3
    assert depth_of(b"[" * 50) == 50


# -- too much ------------------------------------------------------------------------------------------------------------


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


# -- secrets -------------------------------------------------------------------------------------------------------------


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
