"""What stays long lends its place, and no more than are spare."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from esper.services.tezzeret.places import Places

LONG_S = 0.05


class Work:
    """Jobs at places; each stays until it is let go."""

    def __init__(self, places: Places) -> None:
        self.places, self.at_work, self.most = places, set[str](), 0
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks.append(asyncio.create_task(self._stay(name)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def end(self, *names: str) -> None:
        for name in names:
            self.ends[name].set()
        for _ in range(4):
            await asyncio.sleep(0)

    async def _stay(self, name: str) -> None:
        async with self.places.taken():
            self.at_work.add(name)
            self.most = max(self.most, len(self.at_work))
            await self.ends[name].wait()
            self.at_work.discard(name)


@contextmanager
def at(places: Places) -> Iterator[Work]:
    work = Work(places)
    yield work
    for task in work.tasks:
        task.cancel()


async def until(work: Work, *names: str) -> None:
    async with asyncio.timeout(10):
        while work.at_work != set(names):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_one_that_stays_long_is_replaced_until_it_ends() -> None:
    with at(Places(1, spare=1, long_s=LONG_S)) as work:
        await work.begin("hangs", "next", "last")
        assert work.at_work == {"hangs"}
        await until(work, "hangs", "next")
        await work.end("hangs")
        assert work.at_work == {"next"}, "its place was lent: it leaves none behind"
        await work.end("next")
        assert work.at_work == {"last"}


async def test_no_more_are_replaced_than_are_spare_and_the_next_when_one_of_them_ends() -> None:
    with at(Places(2, spare=1, long_s=LONG_S)) as work:
        await work.begin("first", "second", "third", "fourth")
        await until(work, "first", "second", "third")
        await asyncio.sleep(3 * LONG_S)
        assert "fourth" not in work.at_work, "all three stay long, and one was spare"
        await work.end("first")
        await until(work, "second", "third", "fourth")
        assert work.most == 3


@pytest.mark.parametrize("spare", [0, 1, 3])
async def test_when_all_have_ended_as_many_places_are_there_as_at_first(spare: int) -> None:
    places = Places(2, spare=spare, long_s=LONG_S)
    with at(places) as work:
        await work.begin(*"abcdefgh")
        await asyncio.sleep(2 * LONG_S)
        while work.at_work:
            await work.end(min(work.at_work))
    with at(places) as work:
        await work.begin(*"abcdefgh")
        assert len(work.at_work) == 2


async def test_without_a_spare_one_what_stays_long_keeps_the_others_waiting() -> None:
    with at(Places(1, long_s=LONG_S)) as work:
        await work.begin("hangs", "next")
        await asyncio.sleep(3 * LONG_S)
        assert work.at_work == {"hangs"}
