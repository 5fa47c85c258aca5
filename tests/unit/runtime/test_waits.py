"""Whoever waits for a change is woken by it, and leaves nothing behind when it waits no longer."""

import asyncio

import pytest

from esper.runtime.closing import Closing
from esper.runtime.waits import Bell, is_set_within


async def test_a_bell_wakes_everybody_and_each_looks_for_itself() -> None:
    bell, held, woken = Bell(), set[str](), list[str]()

    async def wait_for(name: str) -> None:
        await bell.wait_for(lambda: name in held)
        woken.append(name)

    waiting = [asyncio.create_task(wait_for(name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    for name in ("b", "a"):
        held.add(name)
        bell.ring()
        for _ in range(3):
            await asyncio.sleep(0)
    assert woken == ["b", "a"]
    await asyncio.gather(*waiting)


async def test_who_finds_what_it_wants_does_not_wait() -> None:
    waiting = asyncio.create_task(Bell().wait_for(lambda: True))
    await asyncio.sleep(0)
    assert waiting.done()


async def test_a_wait_that_is_given_up_leaves_nothing_in_the_bell() -> None:
    bell = Bell()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await bell.wait_for(lambda: False)
    assert not bell.waiting
    bell.ring()


async def test_an_event_is_waited_for_no_longer_than_was_said() -> None:
    event = asyncio.Event()
    assert not await is_set_within(event, 0.001)
    asyncio.get_running_loop().call_later(0.001, event.set)
    assert await is_set_within(event, 5.0)


async def test_a_block_closes_what_it_opened_also_where_it_fails() -> None:
    class Door(Closing):
        closed = 0

        async def close(self) -> None:
            self.closed += 1

    door = Door()
    with pytest.raises(ZeroDivisionError):
        async with door:
            1 / 0  # noqa: B018
    async with door as opened:
        assert opened is door
    assert door.closed == 2
