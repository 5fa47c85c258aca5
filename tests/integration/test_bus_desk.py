"""``esper bus`` looks at a real bus, on Redis and in a journal, and moves its dead letters."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.app import app
from esper.errors import ConfigError, ContractError, EsperError, NotFound
from esper.ports import Delivery, MessageBus
from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.services.oona.redis_link import Link
from esper.testing.servers import RedisServer

STREAM, LIMIT_S = "lab.results", 10.0


@dataclass(frozen=True)
class Site:
    """A bus that is opened when it is needed, and its address for the command line."""

    url: str
    open: Callable[[], MessageBus]

    def run(self, work: Callable[[MessageBus], Awaitable[object]]) -> None:
        """Do something on the bus, and close it."""

        async def opened() -> None:
            bus = self.open()
            try:
                await work(bus)
            finally:
                await bus.close()

        asyncio.run(opened())


def on_redis(server: RedisServer) -> Site:
    config = RedisBusConfig(url=server.url, max_tries=2, retry_delay_s=0.001, block_s=0.05, claim_idle_s=60.0)
    return Site(server.url, lambda: RedisBus(config))


@pytest.fixture(params=["redis", "journal"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    if request.param == "redis":
        return on_redis(request.getfixturevalue("redis_server"))
    path = tmp_path / "bus.journal"
    limits = MemoryBusConfig(max_tries=2, retry_delay_s=0.001)
    return Site(str(path), lambda: MemoryBus(limits, journal=Journal(path)))


def esper(*arguments: str) -> str:
    """Run the command line in this process, and return what it printed; what it refuses is raised."""
    done = CliRunner().invoke(app, ["bus", *arguments], catch_exceptions=True)
    if isinstance(done.exception, EsperError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "esper.cli", "bus", *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def told(*arguments: str) -> dict[str, object]:
    found = json.loads(esper(*arguments, "--json"))
    assert isinstance(found, dict)
    return found


def die(*numbers: int, group: str = "plotters") -> Callable[[MessageBus], Awaitable[None]]:
    """Return work that publishes numbers from 0 to 4, of which some cannot be handled."""

    async def work(bus: MessageBus) -> None:
        rest = asyncio.Event()

        async def plot(delivery: Delivery) -> None:
            assert isinstance(delivery.body, dict)
            if delivery.body["n"] in numbers:
                raise RuntimeError(f"no ink for {delivery.body['n']}")
            if delivery.body["n"] == 4:
                rest.set()

        for n in range(5):
            await bus.publish(STREAM, {"n": n}, run_id="run-1")
        reading = asyncio.ensure_future(bus.subscribe(STREAM, group, plot, start_from="0"))
        async with asyncio.timeout(LIMIT_S):
            await rest.wait()
        await bus.close()
        await reading

    return work


def handled(count: int, *, group: str = "plotters") -> tuple[Callable[[MessageBus], Awaitable[None]], list[Delivery]]:
    """Return work that reads a number of messages, and the list that they come to."""
    found: list[Delivery] = []

    async def work(bus: MessageBus) -> None:
        enough = asyncio.Event()

        async def read(delivery: Delivery) -> None:
            found.append(delivery)
            if len(found) >= count:
                enough.set()

        reading = asyncio.ensure_future(bus.subscribe(STREAM, group, read))
        async with asyncio.timeout(LIMIT_S):
            await enough.wait()
        await bus.close()
        await reading

    return work, found


def letters(site: Site) -> list[dict[str, object]]:
    found = told("dead", "--url", site.url)["letters"]
    assert isinstance(found, list)
    return found


def test_dead_letters_are_listed_with_their_reason_and_message(site: Site) -> None:
    site.run(die(1, 3))
    head, first, second = esper("dead", "--url", site.url).splitlines()
    assert head.split() == ["ID", "STREAM", "GROUP", "TRIES", "BURIED", "WHY"]
    for line, n in ((first, 1), (second, 3)):
        assert line.split()[1:4] == [STREAM, "plotters", "2"]
        assert line.endswith(f"RuntimeError: no ink for {n}")
    (letter, _) = letters(site)
    assert letter["id"] == first.split()[0]
    assert letter["message"]["body"] == {"n": 1}  # type: ignore[index]
    assert letter["message"]["run_id"] == "run-1"  # type: ignore[index]
    history: list[dict[str, str]] = letter["history"]  # type: ignore[assignment]
    assert [attempt["reason"] for attempt in history] == ["RuntimeError: no ink for 1"] * 2
    assert history[0]["at"] < history[1]["at"]
    assert told("dead", "--url", site.url, "--last", "1")["total"] == 2
    assert "1 older" in esper("dead", STREAM, "--url", site.url, "--last", "1")
    assert '"n": 1' in esper("dead", "--url", site.url, "--full")
    assert "no dead letters" in esper("dead", "another.stream", "--url", site.url)


def test_a_replayed_message_comes_again_under_its_id_and_its_letter_is_gone(site: Site) -> None:
    site.run(die(1, 3))
    first, second = letters(site)
    assert told("replay", STREAM, str(first["id"]), "--url", site.url) == {"stream": STREAM, "replayed": [first["id"]]}
    assert letters(site) == [second | {"place": letters(site)[0]["place"]}]
    read, found = handled(1)
    site.run(read)
    assert [(delivery.id, delivery.body, delivery.run_id) for delivery in found] == [(first["id"], {"n": 1}, "run-1")]
    assert "1 message put back" in esper("replay", STREAM, "--all", "--url", site.url)
    assert letters(site) == []
    read, found = handled(1)
    site.run(read)
    assert [delivery.id for delivery in found] == [second["id"]]


def test_a_message_that_dies_again_is_a_dead_letter_again(site: Site) -> None:
    site.run(die(3))
    (before,) = letters(site)
    esper("replay", STREAM, "--all", "--url", site.url)
    site.run(die(3))
    assert [letter["message"]["body"] for letter in letters(site)] == [{"n": 3}, {"n": 3}]  # type: ignore[index]
    assert before["id"] in [letter["id"] for letter in letters(site)]


def test_dropped_letters_are_gone_and_nothing_comes_again(site: Site) -> None:
    site.run(die(1, 3))
    first, second = letters(site)
    with pytest.raises(ConfigError, match="ESP-2803"):
        esper("drop", STREAM, "--all", "--url", site.url)
    assert told("drop", STREAM, str(second["id"]), "--yes", "--url", site.url)["dropped"] == [second["id"]]
    assert [letter["id"] for letter in letters(site)] == [first["id"]]
    assert "1 message dropped" in esper("drop", STREAM, "--all", "--yes", "--url", site.url)
    assert letters(site) == []
    (stream,) = (s for s in streams(site) if s["stream"] == STREAM)
    assert (stream["published"], stream["groups"][0]["lag"]) == (5, 0)  # type: ignore[index]


def test_what_names_no_letter_is_refused_and_moves_nothing(site: Site) -> None:
    site.run(die(1))
    for arguments in (("replay", STREAM), ("replay", STREAM, "message-1", "--all"), ("drop", STREAM, "--yes")):
        with pytest.raises(ConfigError, match="ESP-2801"):
            esper(*arguments, "--url", site.url)
    with pytest.raises(NotFound, match=r"ESP-5201.*message-1"):
        esper("replay", STREAM, "message-1", "--url", site.url)
    assert len(letters(site)) == 1


def streams(site: Site) -> list[dict[str, object]]:
    found = told("stats", "--url", site.url)["streams"]
    assert isinstance(found, list)
    return found


def test_figures_say_what_each_stream_holds_and_how_far_its_groups_are(site: Site) -> None:
    site.run(die(1, 3))
    read, _ = handled(2, group="late")

    async def more(bus: MessageBus) -> None:
        reading = asyncio.ensure_future(read(bus))
        await asyncio.sleep(0.1)
        for n in (5, 6):
            await bus.publish(STREAM, {"n": n})
        await reading

    site.run(more)
    (stream, grave) = streams(site)
    assert {name: stream[name] for name in ("held", "published", "removed", "dead")} == {
        "held": 7, "published": 7, "removed": 0, "dead": 2,
    }  # fmt: skip
    lost = 0 if "://" in site.url else None  # a journal keeps no count of it
    rest = {"pending": 0, "oldest_pending_s": None, "redelivered": 0, "lost": lost}
    assert stream["groups"] == [
        {"group": "late", "lag": 0, "depth": 0} | rest,
        {"group": "plotters", "lag": 2, "depth": 2} | rest,
    ]
    assert (grave["stream"], grave["held"], grave["groups"]) == (f"{STREAM}.dead", 2, [])
    lines = esper("stats", STREAM, "--url", site.url).splitlines()
    assert [line.split() for line in lines] == [
        ["STREAM", "HELD", "REMOVED", "DEAD", "GROUP", "LAG", "PENDING", "OLDEST", "REDELIVERED", "LOST"],
        [STREAM, "7", "0", "2", "late", "0", "0", "-", "0", "unknown" if lost is None else "0"],
        ["plotters", "2", "0", "-", "0", "unknown" if lost is None else "0"],
    ]
    with pytest.raises(NotFound, match=f"ESP-5202.*{STREAM}"):
        esper("stats", "lab.result", "--url", site.url)


def test_health_says_what_answers_and_what_is_held(site: Site) -> None:
    site.run(die(1))
    said = esper("health", "--url", site.url)
    assert "usable, answered in" in said
    assert "streams: 2" in said
    found = told("health", "--url", site.url)
    assert (found["usable"], found["why"], found["streams"]) == (True, "", 2)


def test_health_of_a_bus_that_does_not_answer_ends_with_one() -> None:
    done = program("health", "--url", "redis://127.0.0.1:1")
    assert done.returncode == 1
    assert "not usable" in done.stdout
    assert not done.stderr


def test_the_last_messages_are_shown_one_a_line(site: Site) -> None:
    site.run(die())
    lines = esper("tail", STREAM, "--last", "2", "--no-wait", "--url", site.url).splitlines()
    assert [line.split()[1:3] for line in lines] == [["dict", "run-1"]] * 2
    assert [line.partition("{")[2] for line in lines] == ['"n": 3}', '"n": 4}']
    shown = esper("tail", STREAM, "--no-wait", "--json", "--url", site.url).splitlines()
    assert [json.loads(line)["body"] for line in shown] == [{"n": n} for n in range(5)]
    with pytest.raises(NotFound, match="ESP-5202"):
        esper("tail", "nowhere", "--url", site.url)


def asked(server: RedisServer, *commands: tuple[str | int, ...]) -> list[object]:
    """Send commands past the bus."""

    async def ask() -> list[object]:
        link = Link(server.url, 2.0)
        try:
            return await link.ask_all(commands)
        finally:
            await link.close()

    return asyncio.run(ask())


def lag(server: RedisServer) -> tuple[object, object]:
    """Return the lag of a group as it is shown, and as Redis gives it."""
    (stream,) = streams(on_redis(server))
    (answer,) = asked(server, ("XINFO", "GROUPS", STREAM))
    (group,) = answer  # type: ignore[misc]
    return stream["groups"][0]["lag"], group[group.index(b"lag") + 1]  # type: ignore[index]


def test_the_lag_is_counted_where_redis_does_not_know_it(redis_server: RedisServer) -> None:
    places = asked(redis_server, *(("XADD", STREAM, "*", "n", n) for n in range(1200)))
    asked(redis_server, ("XGROUP", "CREATE", STREAM, "middle", places[699].decode()))  # type: ignore[attr-defined]
    assert lag(redis_server) == (500, None)


def test_the_lag_is_right_where_redis_is_wrong(redis_server: RedisServer) -> None:
    adds = [("XADD", STREAM, "*", "n", n) for n in range(100)]
    asked(redis_server, ("XGROUP", "CREATE", STREAM, "slow", "0", "MKSTREAM"), *adds)
    asked(redis_server, ("XREADGROUP", "GROUP", "slow", "a", "COUNT", 10, "STREAMS", STREAM, ">"))
    assert lag(redis_server) == (90, 90)
    asked(redis_server, ("XTRIM", STREAM, "MAXLEN", 30))
    asked(redis_server, ("XREADGROUP", "GROUP", "slow", "a", "COUNT", 10, "STREAMS", STREAM, ">"))
    shown, said = lag(redis_server)
    assert shown == 20
    is_valkey = b"server_name:valkey" in redis_server.ask("INFO server")
    assert is_valkey or said != 20, "Redis counts right now: the law has no witness"


def test_a_lag_that_is_too_large_to_count_is_unknown(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esper.services.oona.redis_desk._PAGE", 10)
    monkeypatch.setattr("esper.services.oona.redis_desk._PAGES", 2)
    places = asked(redis_server, *(("XADD", STREAM, "*", "n", n) for n in range(100)))
    asked(redis_server, ("XGROUP", "CREATE", STREAM, "middle", places[49].decode()))  # type: ignore[attr-defined]
    assert lag(redis_server)[0] is None
    assert "unknown" in esper("stats", "--url", redis_server.url)


def test_pending_messages_are_shown_with_their_age(redis_server: RedisServer) -> None:
    asked(redis_server, ("XGROUP", "CREATE", STREAM, "g", "0", "MKSTREAM"))
    asked(redis_server, *(("XADD", STREAM, "*", "n", n) for n in range(3)))
    (read,) = asked(redis_server, ("XREADGROUP", "GROUP", "g", "a", "COUNT", 2, "STREAMS", STREAM, ">"))
    at = read[0][1][0][0].decode()  # type: ignore[index]
    time.sleep(0.05)
    asked(redis_server, ("XCLAIM", STREAM, "g", "b", 0, at))
    (stream,) = streams(on_redis(redis_server))
    (group,) = stream["groups"]  # type: ignore[misc]
    assert (group["lag"], group["pending"], group["depth"], group["redelivered"]) == (1, 2, 3, 1)
    assert 0.05 <= group["oldest_pending_s"] < 60


def test_an_entry_that_is_no_message_is_shown_and_comes_back_as_it_was(redis_server: RedisServer) -> None:
    site = on_redis(redis_server)
    site.run(die())
    asked(redis_server, ("XADD", STREAM, "*", "colour", "red"), ("XADD", f"{{{STREAM}}}.dead", "*", "x", "1"))
    assert "colour" not in esper("tail", STREAM, "--no-wait", "--url", site.url)
    assert "no message" in esper("tail", STREAM, "--no-wait", "--url", site.url)
    read, _ = handled(1)

    async def bury(bus: MessageBus) -> None:
        await bus.publish(STREAM, {"n": 9})
        await read(bus)

    site.run(bury)
    rogue, found = letters(site)
    assert "lacks type" in str(rogue["fault"])
    with pytest.raises(ContractError, match="ESP-3201"):
        esper("replay", STREAM, str(rogue["id"]), "--url", site.url)
    esper("replay", STREAM, str(found["id"]), "--url", site.url)
    (newest,) = asked(redis_server, ("XREVRANGE", STREAM, "+", "-", "COUNT", 1))
    assert newest[0][1] == [b"colour", b"red"]  # type: ignore[index]


def test_a_letter_is_taken_from_a_reader_that_holds_it(redis_server: RedisServer) -> None:
    site = on_redis(redis_server)
    site.run(die(1))
    grave = f"{{{STREAM}}}.dead"
    asked(
        redis_server,
        ("XGROUP", "CREATE", grave, "undertakers", "0"),
        ("XREADGROUP", "GROUP", "undertakers", "a", "STREAMS", grave, ">"),
    )
    esper("drop", STREAM, "--all", "--yes", "--url", site.url)
    (pending,) = asked(redis_server, ("XPENDING", grave, "undertakers"))
    assert pending[0] == 0  # type: ignore[index]


def test_a_stream_is_followed_until_it_is_interrupted(redis_server: RedisServer) -> None:
    site = on_redis(redis_server)
    site.run(die())
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "esper.cli", "bus", "tail", STREAM, "--last", "1", "--url", site.url],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as following:  # fmt: skip
        assert following.stdout is not None
        assert '{"n": 4}' in following.stdout.readline()

        async def publish(bus: MessageBus) -> None:
            await bus.publish(STREAM, {"new": True, "odd": float("nan")})

        site.run(publish)
        line = following.stdout.readline()
        following.send_signal(signal.SIGINT)
        rest, errors = following.communicate(timeout=LIMIT_S)
    assert line.endswith('{"new": true, "odd": "NaN"}\n')
    assert (following.returncode, rest, errors) == (130, "", "")
    (stream,) = streams(site)
    assert [group["group"] for group in stream["groups"]] == ["plotters"]  # type: ignore[attr-defined]


def test_the_program_answers_mistakes_in_a_sentence(tmp_path: Path) -> None:
    done = program("stats", "--url", "redis://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("ESP-4100: Redis does not answer")


def test_a_journal_that_is_none_or_in_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="ESP-5203"):
        esper("stats", "--url", str(tmp_path / "nothing.journal"))
    (tmp_path / "text").write_text("no database at all, and long enough to be looked at" * 20)
    with pytest.raises(ConfigError, match="ESP-2802"):
        esper("stats", "--url", str(tmp_path / "text"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]
    journal = Journal(tmp_path / "held.journal")
    try:
        with pytest.raises(EsperError, match="another process holds it"):
            esper("stats", "--url", str(journal.path))
    finally:
        journal.close()
