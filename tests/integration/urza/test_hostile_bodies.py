"""Bodies that are too long, too deep, too slow, or no JSON."""

import asyncio
import gzip
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from esper.services.rest.bodies import depth_of
from esper.services.urza.rest.config import UrzaConfig
from tests.integration.urza.strangers import ZERO, Target, raw_answer, target


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
