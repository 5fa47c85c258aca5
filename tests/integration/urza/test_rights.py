"""Who may do what: keys, their scopes, and this machine without one."""

import hmac
import re
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from sqlalchemy import select

from esper.services.rest.callers import OPEN_PATHS
from esper.services.rest.config import is_loopback
from esper.services.urza.access import ApiKeyRow
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.services.urza.main import app
from esper.services.urza.rest.config import UrzaConfig
from esper.testing.clock import ManualClock
from esper.testing.store_server import served
from tests.integration.urza.strangers import ZERO, Target, target


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
    code = (Path(__file__).parents[3] / "src/esper/services/urza/keys.py").read_text(encoding="utf-8")
    assert not re.search(r"key_hash\s*==|==\s*\w*\.?key_hash", code)


async def test_the_database_holds_no_key(store: Target) -> None:
    files = list((Path(store.manager.database._sessions.kw["bind"].url.database).parent).glob("library.db*"))
    held = b"".join(path.read_bytes() for path in files)
    for token in store.keys.values():
        assert token.split("_", 2)[2].encode() not in held
    async with store.manager.database.reading() as session:
        rows = (await session.scalars(select(ApiKeyRow))).all()
    assert len({row.key_hash for row in rows}) == 3


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
