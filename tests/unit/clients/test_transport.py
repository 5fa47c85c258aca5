"""The transport against a real server that misbehaves on demand."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from pydantic import SecretStr

from esper.contracts.problems import IDEMPOTENCY_KEY, problem_of
from esper.errors import (
    CircuitOpen,
    ConfigError,
    Conflict,
    ContractError,
    DeadlineExceeded,
    EsperError,
    InvalidBlueprint,
    StoreUnavailable,
    Unavailable,
)
from esper.services.clients.circuit_breaker import BreakerState
from esper.services.clients.messages import Request, TransportConfig
from esper.services.clients.transport import Transport
from esper.telemetry.tracing import traced
from esper.testing.server import free_port

QUICK = {"first_wait_s": 0.001, "longest_wait_s": 0.05, "try_s": 0.5, "deadline_s": 3.0, "stall_s": 0.3}
TRACE = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


class Server:
    """Answers each request with the next thing in its list, the last one for ever."""

    def __init__(self, *answers: web.Response | float | str) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(given, float):
            await asyncio.sleep(given)
            given = web.Response()
        if given == "break":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if given == "half":
            return await self._half(request)
        assert isinstance(given, web.Response)
        return web.Response(status=given.status, body=given.body, headers=given.headers)

    async def _half(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 500)
        await asyncio.sleep(60)
        return response


@asynccontextmanager
async def serving(server: Server, **config: object) -> AsyncIterator[Transport]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with Transport(
            f"http://127.0.0.1:{port}",
            key=SecretStr("topsecret"),
            config=TransportConfig.model_validate(QUICK | config),
            unavailable=StoreUnavailable,
        ) as transport:
            yield transport
    finally:
        await runner.cleanup()


def refusing(error: EsperError) -> web.Response:
    problem = problem_of(error)
    return web.Response(
        status=problem.status, body=problem.model_dump_json().encode(), content_type="application/problem+json"
    )


GET, POST = Request("GET", "/thing"), Request("POST", "/thing", body=b"{}")


@pytest.mark.parametrize("answer", [web.Response(status=s) for s in (429, 502, 503, 504)] + ["break", 1.0])
async def test_what_may_pass_is_tried_again(answer: web.Response | float | str) -> None:
    server = Server(answer, answer, web.Response(body=b"at last"))
    async with serving(server) as transport:
        assert (await transport.call(GET)).body == b"at last"
        assert len(server.requests) == 3
        assert transport.breaker.state is BreakerState.CLOSED


async def test_a_repeated_post_carries_the_same_key_and_another_call_another() -> None:
    server = Server(web.Response(status=503), web.Response())
    async with serving(server) as transport:
        await transport.call(POST)
        await transport.call(POST)
    keys = [headers[IDEMPOTENCY_KEY] for _, _, headers, _ in server.requests]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
async def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    server = Server(web.Response(status=status, body=b"<html>"))
    async with serving(server) as transport:
        with pytest.raises(EsperError, match=str(status)):
            await transport.call(GET)
    assert len(server.requests) == 1


async def test_an_error_arrives_as_what_it_was() -> None:
    sent = InvalidBlueprint("no such node", path="$.output", why="nothing is called nowhere", todo="name one")
    async with serving(Server(refusing(sent))) as transport:
        with pytest.raises(InvalidBlueprint) as caught:
            await transport.call(POST)
    assert (caught.value.path, str(caught.value), caught.value.code) == ("$.output", str(sent), sent.code)


async def test_refusals_open_no_breaker() -> None:
    server = Server(refusing(Conflict("somebody else holds it")))
    async with serving(server, failure_threshold=2) as transport:
        for _ in range(10):
            with pytest.raises(Conflict):
                await transport.call(POST)
        assert transport.breaker.state is BreakerState.CLOSED
    assert len(server.requests) == 10


async def test_outages_open_the_breaker_and_one_probe_closes_it() -> None:
    server = Server(web.Response(status=503))
    async with serving(server, failure_threshold=3, recovery_timeout_s=0.2) as transport:
        with pytest.raises(CircuitOpen):  # the fourth try is held back
            await transport.call(GET)
        with pytest.raises(CircuitOpen, match="3 times in a row"):
            await transport.call(GET)
        assert len(server.requests) == 3
        await asyncio.sleep(0.21)
        server.answers = [0.1]
        results = await asyncio.gather(*(transport.call(GET) for _ in range(50)), return_exceptions=True)
        assert [type(result).__name__ for result in results].count("Reply") == 1
        assert [type(result).__name__ for result in results].count("CircuitOpen") == 49
        assert len(server.requests) == 4
        assert transport.breaker.state is BreakerState.CLOSED


async def test_a_cancelled_probe_lets_the_next_one_go() -> None:
    server = Server(web.Response(status=503))
    async with serving(server, failure_threshold=1, recovery_timeout_s=0.05, tries=1) as transport:
        with pytest.raises(StoreUnavailable):
            await transport.call(GET)
        await asyncio.sleep(0.06)
        server.answers = [10.0]
        probe = asyncio.create_task(transport.call(GET))
        await asyncio.sleep(0.05)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        server.answers = [web.Response()]
        assert (await transport.call(GET)).status == 200


async def test_all_tries_together_keep_the_deadline() -> None:
    async with serving(Server(5.0), deadline_s=0.3, try_s=0.2, tries=20) as transport:
        began = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await transport.call(GET)
        assert asyncio.get_running_loop().time() - began < 1.0


async def test_the_server_says_how_long_to_wait_and_no_longer_than_is_allowed() -> None:
    server = Server(web.Response(status=429, headers={"Retry-After": "9999"}), web.Response())
    async with serving(server, longest_wait_s=0.2) as transport:
        began = asyncio.get_running_loop().time()
        await transport.call(GET)
        assert 0.19 < asyncio.get_running_loop().time() - began < 1.5


async def test_nobody_there_is_an_outage_that_names_the_address() -> None:
    async with Transport(
        f"http://127.0.0.1:{free_port()}", config=TransportConfig.model_validate(QUICK), unavailable=StoreUnavailable
    ) as transport:
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1 does not answer"):
            await transport.call(GET)
        assert transport.retries == 3


async def test_an_answer_without_end_is_not_read_to_the_end() -> None:
    async with serving(Server(web.Response(body=b"x" * 5000)), most_bytes=1024) as transport:
        with pytest.raises(ContractError, match="longer than 1024"):
            await transport.call(GET)


async def test_a_bomb_is_measured_by_what_it_unpacks_to() -> None:
    import gzip

    bomb = web.Response(body=gzip.compress(b"0" * 5_000_000), headers={"Content-Encoding": "gzip"})
    async with serving(Server(bomb), most_bytes=100_000) as transport:
        with pytest.raises(ContractError, match="longer than 100000"):
            await transport.call(GET)


async def test_the_key_follows_no_redirect() -> None:
    elsewhere = Server(web.Response())
    async with serving(elsewhere) as other:
        there = str(other._url)
        async with serving(Server(web.Response(status=307, headers={"Location": there}))) as transport:
            with pytest.raises(EsperError):
                await transport.call(GET)
    assert elsewhere.requests == []


async def test_the_key_and_the_trace_are_sent_and_the_key_is_shown_nowhere() -> None:
    server = Server(web.Response())
    async with serving(server) as transport:
        with traced(TRACE):
            await transport.call(GET)
        assert "topsecret" not in repr(vars(transport))
    _, _, headers, _ = server.requests[0]
    assert headers["Authorization"] == "Bearer topsecret"
    assert headers["traceparent"] == TRACE


@pytest.mark.parametrize(
    "address", ["", "localhost:8000", "ftp://x", "http://", "http://me:pw@host", "http://host/?key=1", "http://[::1"]
)
def test_an_address_that_cannot_be_used_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Transport(address)
    assert "pw" not in str(caught.value)


async def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(ConfigError, match="not open"):
        await Transport("http://localhost:1").call(GET)


async def test_queries_are_quoted_and_repeated() -> None:
    server = Server(web.Response())
    async with serving(server) as transport:
        await transport.call(Request("GET", "/x%2Fy", query={"tags": ["a&b", "ü"], "limit": "5"}))
    assert server.requests[0][1] == "/x%2Fy?tags=a%26b&tags=%C3%BC&limit=5"


# -- bytes in pieces -----------------------------------------------------------------------------------------------------


async def test_a_download_that_stands_still_is_given_up() -> None:
    async with serving(Server("half")) as transport, transport.download(GET) as (reply, pieces):
        assert reply.headers["Content-Length"] == "1000"
        with pytest.raises(DeadlineExceeded):
            async for _ in pieces:
                pass


async def test_what_the_reader_of_a_download_raises_is_no_outage() -> None:
    async def fills_the_disk(transport: Transport) -> None:
        async with transport.download(GET) as (_, pieces):
            async for _ in pieces:
                raise OSError("disk full")

    async with serving(Server(web.Response(body=b"x" * 100))) as transport:
        with pytest.raises(OSError, match="disk full"):
            await fills_the_disk(transport)
        assert transport.breaker.state is BreakerState.CLOSED
        assert transport.breaker._failures == 0


async def test_an_upload_arrives_whole_and_its_own_errors_are_its_own() -> None:
    async def sound() -> AsyncIterator[bytes]:
        for n in range(5):
            yield json.dumps(n).encode() * 1000

    async def torn() -> AsyncIterator[bytes]:
        yield b"x"
        raise OSError("no such file")

    server = Server(web.Response())
    async with serving(server) as transport:
        await transport.upload(Request("PUT", "/bytes"), sound())
        assert len(server.requests[0][3]) == 5000
        with pytest.raises(OSError, match="no such file"):
            await transport.upload(Request("PUT", "/bytes"), torn())


async def test_a_refused_upload_or_download_raises_the_error_of_the_server() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    async with serving(Server(refusing(Conflict("it is there already")))) as transport:
        with pytest.raises(Conflict, match="already"):
            await transport.upload(Request("PUT", "/bytes"), pieces())
        with pytest.raises(Conflict, match="already"):
            async with transport.download(GET):
                pass


def test_every_error_of_the_tree_survives_the_wire() -> None:
    from esper.contracts.problems import Problem, error_of

    waiting: list[type[EsperError]] = [EsperError]
    while waiting:
        kind = waiting.pop()
        waiting.extend(kind.__subclasses__())
        if kind.__name__ in ("ChildDied", "InvalidBlueprint") or kind.__module__ != "esper.errors":
            continue
        error = kind("it failed", why="a reason", todo="an advice")
        arrived = error_of(Problem.model_validate_json(problem_of(error).model_dump_json()))
        assert (type(arrived), str(arrived)) == (kind, str(error))
    assert issubclass(type(error_of(Problem(title="", status=503))), Unavailable)
