"""A message that was handled has no second effect, and one that was not is handled again."""

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
