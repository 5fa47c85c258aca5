"""Training hands work over, looks for results, and every wait is counted."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from esper.errors import DeadlineExceeded, Unavailable
from esper.runtime.background import BackgroundLoop, Bridge


@pytest.fixture
def loop() -> Iterator[BackgroundLoop]:
    background = BackgroundLoop()
    yield background
    background.close()


async def _name() -> str:
    return threading.current_thread().name


async def _fail() -> None:
    raise ValueError("planted")


async def _hang() -> None:
    await asyncio.Event().wait()


def test_work_runs_on_the_background_thread(loop: BackgroundLoop) -> None:
    assert loop.submit(_name()).result(5) == "esper"


def test_a_failed_post_is_kept_and_not_lost(loop: BackgroundLoop) -> None:
    bridge = Bridge(loop)
    bridge.post(_fail())
    bridge.flush()
    assert [str(error) for error in bridge.failures] == ["planted"]


def test_a_full_bridge_drops_what_may_be_dropped_and_counts_it(loop: BackgroundLoop) -> None:
    bridge = Bridge(loop, capacity=2)
    accepted = [bridge.post(_hang(), droppable=True) for _ in range(4)]
    assert (accepted, bridge.dropped) == ([True, True, False, False], 2)
    assert bridge.post(_name())


def test_a_deliberate_wait_is_counted_apart_and_has_a_limit(loop: BackgroundLoop) -> None:
    bridge = Bridge(loop)
    with pytest.raises(DeadlineExceeded):
        bridge.wait(bridge.submit(_hang()), limit_s=0.01)
    assert bridge.waits.deliberate == 1


def test_a_closed_loop_says_so(loop: BackgroundLoop) -> None:
    loop.submit(_hang())
    loop.close()
    with pytest.raises(Unavailable, match="closed"):
        loop.submit(_name())


def test_the_limit_of_a_flush_counts_time_without_progress(loop: BackgroundLoop) -> None:
    bridge, turn = Bridge(loop), asyncio.Lock()

    async def take_a_while() -> None:
        async with turn:
            await asyncio.sleep(0.15)

    for _ in range(8):
        bridge.post(take_a_while())
    bridge.flush(limit_s=0.5)
    assert all(post.done() for post in bridge._posts)


def test_a_flush_that_gives_up_says_how_long_the_loop_is_held_up(loop: BackgroundLoop) -> None:
    bridge, release = Bridge(loop), threading.Event()
    loop.call(release.wait)
    bridge.post(_name())
    with pytest.raises(DeadlineExceeded, match="1 messages were not taken") as caught:
        bridge.flush(limit_s=0.5)
    release.set()
    told = re.search(r"last looked for work ([\d.]+) s ago", str(caught.value))
    assert told is not None
    assert float(told.group(1)) >= 0.4
    assert re.search(r"its thread is at wait \(threading.py:\d+\)", str(caught.value))
    bridge.flush()


class HandedTooLate(BackgroundLoop):
    """Is handed work right after it has looked for the last time."""

    late: "Future[str] | None" = None

    def _drain(self) -> None:
        super()._drain()
        self.late = self.submit(_name())


def test_what_is_handed_over_too_late_is_refused_and_waited_for_by_nobody() -> None:
    loop = HandedTooLate()
    loop.close()
    assert loop.late is not None
    with pytest.raises(Unavailable, match="were closed"):
        loop.late.result(10)


def test_what_a_cancelled_task_leaves_behind_to_close_is_closed_before_the_loop_ends() -> None:
    closed = threading.Event()

    async def close() -> None:
        await asyncio.sleep(0.05)
        closed.set()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append(asyncio.ensure_future(close()))

    left, loop = list[asyncio.Future[None]](), BackgroundLoop()
    loop.submit(work())
    time.sleep(0.1)
    loop.close()
    assert closed.is_set()


def test_what_never_ends_does_not_keep_a_loop_from_ending() -> None:
    async def for_ever() -> None:
        await asyncio.Event().wait()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.append(asyncio.ensure_future(for_ever()))

    left, loop = list[asyncio.Future[None]](), BackgroundLoop()
    loop.submit(work())
    time.sleep(0.1)
    loop.close()
    assert not loop.alive
