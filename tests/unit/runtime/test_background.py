"""Training hands work over, looks for results, and every wait is counted."""

import asyncio
import threading
from collections.abc import Iterator

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
