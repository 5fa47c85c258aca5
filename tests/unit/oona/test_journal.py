"""What a journaled bus has acknowledged is there after the process was killed, and after the disk was full."""

import asyncio
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esper.contracts.envelope import DeadLetter
from esper.errors import BusUnavailable, ConfigError, StoreUnavailable
from esper.ports import Delivery
from esper.services.oona.journal import VERSION, Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.testing.bus_readers import STREAM, Reader, Reading

LIMIT_S = 20.0
CONFIG = MemoryBusConfig(retry_delay_s=0.001, max_length=100_000)


def opened(path: Path, config: MemoryBusConfig = CONFIG) -> MemoryBus:
    return MemoryBus(config, journal=Journal(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bus.journal"


async def test_a_new_process_finds_messages_and_acknowledgements(path: Path) -> None:
    reader = Reader()
    async with opened(path) as bus, Reading(bus, reader):
        await asyncio.gather(*(bus.publish(STREAM, {"n": n}) for n in range(10)))
        await reader.wait_for(10)
        await bus.drain(limit_s=LIMIT_S)
    async with opened(path) as bus:
        ids = [await bus.publish(STREAM, {"n": n}, run_id="run-1") for n in (10, 11)]
    again, late = Reader(), Reader()
    async with opened(path) as bus, Reading(bus, again), Reading(bus, late, group="late"):
        await again.wait_for(2)
        await late.wait_for(12)
    assert [(d.id, d.run_id, d.redelivered) for d in again.deliveries] == [(i, "run-1", False) for i in ids]
    assert late.numbers == list(range(12))


async def test_a_group_that_began_with_new_messages_goes_on_where_it_was(path: Path) -> None:
    async with opened(path) as bus, Reading(bus, Reader(), start=">"):
        await asyncio.sleep(0.05)
    async with opened(path) as bus:
        await bus.publish(STREAM, {"n": 1})
    reader = Reader()
    async with opened(path) as bus, Reading(bus, reader, start=">"):
        await reader.wait_for(1)
    assert reader.numbers == [1]


async def test_a_message_in_hand_comes_first_and_is_marked(path: Path) -> None:
    taken = asyncio.Event()

    async def hold(_: Delivery) -> None:
        taken.set()
        await asyncio.Event().wait()

    async with opened(path, CONFIG.model_copy(update={"close_limit_s": 0.0})) as bus, Reading(bus, hold):
        await bus.publish(STREAM, {"n": 0})
        await taken.wait()
        await bus.publish(STREAM, {"n": 1})
        await asyncio.sleep(0.05)
        await bus.close()
    reader = Reader()
    async with opened(path) as bus, Reading(bus, reader):
        await reader.wait_for(2)
    assert [(d.body, d.redelivered) for d in reader.deliveries] == [({"n": 0}, True), ({"n": 1}, False)]


async def test_a_dead_letter_takes_the_place_of_its_message(path: Path) -> None:
    reader, undertaker, again = Reader(failures=3), Reader(), Reader()
    async with opened(path) as bus, Reading(bus, reader):
        dead_id = await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(3)
        await bus.drain(limit_s=LIMIT_S)
    async with opened(path) as bus, Reading(bus, again), Reading(bus, undertaker, stream=f"{STREAM}.dead"):
        (burial,) = await undertaker.wait_for(1)
        assert await bus.drain(limit_s=LIMIT_S)
    assert isinstance(burial.body, DeadLetter)
    assert burial.body.envelope.id == dead_id
    assert again.deliveries == []


async def test_what_nobody_needs_any_more_leaves_the_file(path: Path) -> None:
    reader = Reader()
    async with opened(path, MemoryBusConfig(max_length=20)) as bus, Reading(bus, reader):
        for n in range(200):
            await bus.publish(STREAM, {"n": n})
        await reader.wait_for(200)
        await bus.drain(limit_s=LIMIT_S)
    with sqlite3.connect(path) as db:
        (count,) = db.execute("SELECT sum(next_seq - first_seq) FROM messages").fetchone()
    db.close()
    assert 20 <= count <= 50


async def test_a_writer_in_haste_takes_nothing_from_a_slow_reader(path: Path) -> None:
    reader = Reader()
    async with opened(path, MemoryBusConfig(max_length=5)) as bus, Reading(bus, reader):
        await asyncio.gather(*(bus.publish(STREAM, {"n": n}) for n in range(100)))
        await reader.wait_for(100)
        assert bus.counts()[STREAM].groups["readers"].lost == 0
    assert sorted(int(str(n)) for n in reader.numbers) == list(range(100))


def test_two_processes_cannot_hold_one_journal(path: Path) -> None:
    first = Journal(path)
    with pytest.raises(StoreUnavailable, match="another process holds it"):
        Journal(path)
    first.close()
    Journal(path).close()


def test_a_file_that_is_no_journal_is_refused(path: Path) -> None:
    path.write_bytes(b"no database, but long enough to look like one" * 100)
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        Journal(path)


def test_a_journal_of_a_later_release_is_refused(path: Path) -> None:
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    with pytest.raises(StoreUnavailable, match=f"it has version {VERSION + 1}"):
        Journal(path)


def test_a_way_to_sync_that_does_not_exist_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="sync='off'"):
        Journal(path, sync="off")  # type: ignore[arg-type]


# -- children that are killed --------------------------------------------------------------------------------------------

CHILD = """
import asyncio, os, sys
from pathlib import Path
from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig

STREAM = "contract.numbers"

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

async def main():
    bus = MemoryBus(MemoryBusConfig(max_length=100_000), journal=Journal(Path(sys.argv[1])))
    seen = []
    async def note(delivery):
        seen.append(delivery.body["n"])
    reading = asyncio.ensure_future(bus.subscribe(STREAM, "readers", note, start_from="0"))
    async def publish(n):
        await bus.publish(STREAM, {"n": n, "fill": "x" * 200})
        say("published", n)
    async def tell():
        while True:
            await asyncio.sleep(0.002)
            group = bus.counts()[STREAM].groups["readers"]
            say("acknowledged", group.handled - group.in_hand)
    telling = asyncio.ensure_future(tell())
    n = int(sys.argv[2])
    while True:
        await asyncio.gather(*(publish(n + i) for i in range(20)))
        n += 20

try:
    asyncio.run(main())
except Exception as error:
    say("failed", type(error).__name__, error)
"""


def lines_of(child: "subprocess.Popen[str]", count: int) -> list[list[str]]:
    assert child.stdout is not None
    return [line.split() for line, _ in zip(child.stdout, range(count), strict=False)]


async def found(path: Path) -> tuple[list[object], list[object]]:
    """Return the numbers that a new group finds, and those that the old one is handed."""
    rest, every = Reader(), Reader()
    async with opened(path) as bus, Reading(bus, rest), Reading(bus, every, group="auditors"):
        assert await bus.drain(limit_s=LIMIT_S)
    return every.numbers, rest.numbers


def judged(said: list[list[str]]) -> tuple[set[int], int]:
    """Return the numbers whose publishing was acknowledged, and how many messages the reader had acknowledged."""
    published = {int(words[1]) for words in said if words[0] == "published"}
    return published, max((int(words[1]) for words in said if words[0] == "acknowledged"), default=0)


@pytest.mark.parametrize("lines", [30, 400])
def test_a_killed_process_loses_nothing_it_acknowledged_and_repeats_nothing_acknowledged(
    path: Path, lines: int
) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), "0"], stdout=subprocess.PIPE, text=True)
    said = lines_of(child, lines)
    child.send_signal(signal.SIGKILL)
    rest_of_output, _ = child.communicate(timeout=LIMIT_S)
    said += [line.split() for line in rest_of_output.splitlines() if len(line.split()) == 2]
    assert child.returncode == -signal.SIGKILL
    published, acknowledged = judged(said)
    every, rest = asyncio.run(found(path))
    assert published <= set(every)
    assert len(every) == len(set(every))
    assert every == sorted(every, key=lambda n: int(str(n)))
    # One member reads in order, so that the first messages are those that it acknowledged.
    assert not set(every[:acknowledged]) & set(rest)
    assert rest == every[len(every) - len(rest) :]
    assert published


def test_a_full_disk_is_an_error_and_loses_nothing_acknowledged(path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), "0"],
        stdout=subprocess.PIPE, text=True, timeout=60, preexec_fn=limit, check=True,
    )  # fmt: skip
    said = [line.split() for line in child.stdout.splitlines()]
    failures = [" ".join(words) for words in said if words[0] == "failed"]
    assert len(failures) == 1
    assert "BusUnavailable" in failures[0]
    assert "cannot be written" in failures[0]
    published, acknowledged = judged(said)
    assert len(published) > 100
    every, rest = asyncio.run(found(path))
    assert published <= set(every)
    assert not set(every[:acknowledged]) & set(rest)


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow beyond a page."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_bus_goes_on_once_the_disk_has_room_again(path: Path) -> None:
    reader = Reader()
    async with opened(path) as bus, Reading(bus, reader):
        first = await bus.publish(STREAM, {"n": 0})
        await reader.wait_for(1)
        await bus.drain(limit_s=LIMIT_S)
        for n in (1, 2):
            with full_disk(), pytest.raises(BusUnavailable, match="cannot be written"):
                await bus.publish(STREAM, {"n": n, "fill": "x" * 10_000})
        await bus.publish(STREAM, {"n": 3})
        await reader.wait_for(2)
    assert reader.deliveries[0].id == first
    assert reader.numbers == [0, 3]
    every, rest = await found(path)
    assert (every, rest) == ([0, 3], [])


async def test_a_bus_whose_disk_is_full_says_so_and_is_usable_again_with_room(path: Path) -> None:
    async with opened(path) as bus:
        await bus.publish(STREAM, {"n": 0})
        with full_disk():
            found = await bus.health()
        assert not found.usable
        assert "cannot be written" in found.why
        assert (found.streams, found.messages, found.used_bytes) == (1, 1, None)
        found = await bus.health()
        assert (found.usable, found.why, found.messages) == (True, "", 1)
        assert found.used_bytes is not None
        assert found.used_bytes > 4096


async def test_a_fault_of_ours_is_told_to_who_publishes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("planted")

    bus = MemoryBus(journal=Journal(path))
    monkeypatch.setattr(Journal, "commit", broken)
    with pytest.raises(BusUnavailable, match="planted"):
        async with asyncio.timeout(5):
            await bus.publish("s", {"n": 1})
    monkeypatch.undo()
    await bus.publish("s", {"n": 2})
    await bus.close()


async def test_an_error_that_its_publisher_was_given_is_no_error_of_close(path: Path) -> None:
    bus = opened(path)
    with full_disk(), pytest.raises(BusUnavailable, match="cannot be written"):
        await bus.publish(STREAM, {"n": 1, "fill": "x" * 10_000})
    await bus.close()
    assert await found(path) == ([], [])
