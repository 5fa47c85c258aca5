"""What every state store must do, as a suite that any implementation can run; subclasses give a fixture ``state``."""

import asyncio

from esper.ports import StateStore


class StateContract:
    """The laws of `esper.ports.StateStore`, one test each."""

    async def test_what_was_put_last_is_returned(self, state: StateStore) -> None:
        await state.put("a", b"1")
        await state.put("a", b"2")
        assert await state.get("a") == b"2"

    async def test_an_unknown_key_returns_none(self, state: StateStore) -> None:
        assert await state.get("nothing") is None

    async def test_keys_that_look_alike_are_kept_apart(self, state: StateStore) -> None:
        keys = ["a", "A", "a/b", "a.b", "a%2fb", "..", "ä", "a b", "bandit:layer[0]"]
        for key in keys:
            await state.put(key, key.encode())
        assert [await state.get(key) for key in keys] == [key.encode() for key in keys]

    async def test_an_empty_value_is_not_absent(self, state: StateStore) -> None:
        await state.put("empty", b"")
        assert await state.get("empty") == b""

    async def test_a_reader_never_sees_a_part_of_a_value(self, state: StateStore) -> None:
        values = [bytes([n]) * 200_000 for n in range(8)]
        await state.put("big", values[0])
        writing = asyncio.gather(*(state.put("big", value) for value in values))
        seen = [await state.get("big") for _ in range(20)]
        await writing
        assert set(seen) <= set(values)
