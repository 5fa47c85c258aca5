"""The door lets the more urgent in first, nobody twice, and nobody never."""

import asyncio
import random

import pytest

from esper.services.urza.door import Door
from esper.services.urza.queueing import AGEING_S
from esper.testing.clock import ManualClock


class Crowd:
    """People who wait at a door; each stays inside until somebody is shown out."""

    def __init__(self, at_once: int) -> None:
        self.clock = ManualClock()
        self.door = Door(at_once, self.clock)
        self.entered: list[str] = []
        self.inside: dict[str, asyncio.Event] = {}
        self.most = 0

    async def come(self, name: str, priority: int) -> "asyncio.Task[None]":
        task = asyncio.create_task(self._pass(name, priority))
        await asyncio.sleep(0)
        return task

    async def show_out(self, name: str) -> None:
        self.inside[name].set()
        for _ in range(4):
            await asyncio.sleep(0)

    async def _pass(self, name: str, priority: int) -> None:
        async with self.door.passed(priority):
            self.entered.append(name)
            self.inside[name] = asyncio.Event()
            self.most = max(self.most, len(self.inside))
            try:
                await self.inside[name].wait()
            finally:
                del self.inside[name]


async def test_the_more_urgent_pass_first_and_equals_in_the_order_in_which_they_came() -> None:
    crowd = Crowd(1)
    tasks = [await crowd.come(name, priority) for name, priority in (("a", 3), ("b", 3), ("c", 3), ("d", 8), ("e", 8))]
    while crowd.inside:
        await crowd.show_out(min(crowd.inside))
    assert crowd.entered == ["a", "d", "e", "b", "c"]
    await asyncio.gather(*tasks)


async def test_who_came_long_before_is_not_passed_by_the_more_urgent() -> None:
    crowd = Crowd(1)
    tasks = [await crowd.come("first", 3), await crowd.come("waits", 3)]
    crowd.clock.advance(5 * AGEING_S + 1)
    tasks.append(await crowd.come("urgent", 8))
    while crowd.inside:
        await crowd.show_out(min(crowd.inside))
    assert crowd.entered == ["first", "waits", "urgent"]
    await asyncio.gather(*tasks)


async def test_who_gives_up_at_the_moment_of_being_let_in_leaves_the_door_to_the_next() -> None:
    crowd = Crowd(1)
    first, second, third = [await crowd.come(name, 5) for name in ("first", "second", "third")]
    crowd.inside["first"].set()
    await asyncio.sleep(0)  # the first one leaves, and the second is let in but does not know it yet
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await first
    await asyncio.sleep(0)
    assert crowd.entered == ["first", "third"]
    await crowd.show_out("third")
    await third
    await crowd.come("later", 5)
    assert "later" in crowd.inside


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_gives_up_when_no_place_is_lost_and_none_is_given_twice(seed: int) -> None:
    dice, crowd, tasks = random.Random(seed), Crowd(3), dict[str, "asyncio.Task[None]"]()
    for number in range(200):
        choice = dice.random()
        if choice < 0.5:
            tasks[str(number)] = await crowd.come(str(number), dice.randint(1, 10))
        elif choice < 0.8 and crowd.inside:
            crowd.inside[dice.choice(sorted(crowd.inside))].set()
        elif tasks:
            tasks[dice.choice(sorted(tasks))].cancel()
        if dice.random() < 0.5:
            await asyncio.sleep(0)
    while crowd.inside:
        await crowd.show_out(min(crowd.inside))
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert crowd.most == 3
    for number in range(4):
        await crowd.come(f"at last {number}", 5)
    assert len(crowd.inside) == 3, "every place is free again, and there are no more of them"
