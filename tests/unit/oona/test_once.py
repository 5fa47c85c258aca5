"""A message that was handled has no second effect, and one that was not is handled again."""

import asyncio

import pytest

from esper.contracts.ids import MessageId
from esper.ports import Delivery
from esper.services.oona.once import once


def _delivery(name: str) -> Delivery:
    return Delivery(id=MessageId(name), stream="s", body={}, run_id=None, redelivered=False)


async def test_a_handler_that_failed_is_called_again_and_one_that_did_not_is_not() -> None:
    calls: list[str] = []

    async def fails_first(_: Delivery) -> None:
        calls.append("call")
        if len(calls) == 1:
            raise RuntimeError("planted")

    handle = once(fails_first)
    with pytest.raises(RuntimeError):
        await handle(_delivery("m"))
    await handle(_delivery("m"))
    await handle(_delivery("m"))
    assert len(calls) == 2


async def test_only_so_many_ids_are_remembered() -> None:
    calls: list[str] = []

    async def note(delivery: Delivery) -> None:
        calls.append(delivery.id)

    handle = once(note, remembered=2)
    for name in ("a", "b", "c", "c", "a"):
        await handle(_delivery(name))
    assert calls == ["a", "b", "c", "a"]


async def test_a_message_that_comes_while_it_is_handled_waits_and_has_no_second_effect() -> None:
    calls: list[str] = []
    go_on = asyncio.Event()

    async def slow(delivery: Delivery) -> None:
        calls.append(delivery.id)
        await go_on.wait()
        if len(calls) == 1:
            raise RuntimeError("planted")

    handle = once(slow)
    handling = [asyncio.ensure_future(handle(_delivery("m"))) for _ in range(4)]
    await asyncio.sleep(0)
    assert len(calls) == 1
    go_on.set()
    ended = await asyncio.gather(*handling, return_exceptions=True)
    assert len(calls) == 2, "the second tries what the first one failed at, and the rest know that it is done"
    assert [isinstance(end, RuntimeError) for end in ended] == [True, False, False, False]
