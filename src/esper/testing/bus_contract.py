"""What every message bus must do, as a suite that any implementation can run.

```python
class TestMyBus(BusContract):
    @pytest.fixture
    async def bus(self):
        async with MyBus() as bus:
            yield bus
```

The bus under test hands a message out at most three times, with pauses well below a second.
"""

import asyncio
import copy
from datetime import UTC, datetime

from esper.contracts.envelope import DeadLetter
from esper.contracts.events import CompilationEvent
from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.topics import COMPILATIONS, HEALTH, OUTCOMES
from esper.errors import BusUnavailable, ConfigError, ContractError
from esper.ports import Acknowledge, Delivery, MessageBus
from esper.testing.bus_readers import LIMIT_S, STREAM, Reader, Reading


class BusContract:
    """The laws of `esper.ports.MessageBus`, one test each."""

    async def test_a_stream_keeps_its_order(self, bus: MessageBus) -> None:
        reader = Reader()
        async with Reading(bus, reader):
            for n in range(200):
                await bus.publish(STREAM, {"n": n})
            await reader.wait_for(200)
        assert reader.numbers == list(range(200))

    async def test_every_group_sees_every_message(self, bus: MessageBus) -> None:
        first, second = Reader(), Reader()
        async with Reading(bus, first, group="a"), Reading(bus, second, group="b"):
            for n in range(20):
                await bus.publish(STREAM, {"n": n})
            await first.wait_for(20)
            await second.wait_for(20)
        assert first.numbers == second.numbers == list(range(20))

    async def test_members_of_a_group_share_the_work(self, bus: MessageBus) -> None:
        first, second = Reader(), Reader()
        async with Reading(bus, first), Reading(bus, second):
            for n in range(50):
                await bus.publish(STREAM, {"n": n})
            async with asyncio.timeout(LIMIT_S):
                while len(first.deliveries) + len(second.deliveries) < 50:
                    await asyncio.sleep(0.01)
        assert sorted([*first.numbers, *second.numbers], key=str) == sorted(range(50), key=str)

    async def test_a_new_group_may_start_with_the_oldest_message(self, bus: MessageBus) -> None:
        await bus.publish(STREAM, {"n": 1})
        reader = Reader()
        async with Reading(bus, reader, start="0"):
            await reader.wait_for(1)
        assert reader.numbers == [1]

    async def test_a_new_group_may_start_with_new_messages_only(self, bus: MessageBus) -> None:
        await bus.publish(STREAM, {"n": -1})
        reader = Reader()
        async with Reading(bus, reader, start=">"):
            async with asyncio.timeout(LIMIT_S):
                while not reader.deliveries:
                    await bus.publish(STREAM, {"n": 1})
                    await asyncio.sleep(0.01)
        assert -1 not in reader.numbers

    async def test_a_failed_message_comes_again_with_its_id_and_in_order(self, bus: MessageBus) -> None:
        reader = Reader(failures=1)
        async with Reading(bus, reader):
            for n in range(3):
                await bus.publish(STREAM, {"n": n})
            deliveries = await reader.wait_for(4)
        assert reader.numbers == [0, 0, 1, 2]
        assert deliveries[0].id == deliveries[1].id
        assert [delivery.redelivered for delivery in deliveries] == [False, True, False, False]

    async def test_a_message_that_always_fails_goes_to_the_dead_letters_with_its_reason(self, bus: MessageBus) -> None:
        reader, undertaker = Reader(failures=3), Reader()
        async with Reading(bus, reader), Reading(bus, undertaker, stream=f"{STREAM}.dead", group="undertakers"):
            dead_id = await bus.publish(STREAM, {"n": 0}, run_id="run-1")
            await bus.publish(STREAM, {"n": 1})
            await reader.wait_for(4)
            (burial,) = await undertaker.wait_for(1)
        letter = burial.body
        assert isinstance(letter, DeadLetter)
        assert (letter.stream, letter.group, letter.tries) == (STREAM, "readers", 3)
        assert letter.envelope.id == dead_id
        assert "planted failure 3" in letter.reason
        assert burial.run_id == "run-1"
        assert reader.numbers == [0, 0, 0, 1]

    async def test_a_message_in_the_hands_of_a_member_that_dies_goes_to_another(self, bus: MessageBus) -> None:
        taken = asyncio.Event()

        async def hold(_: Delivery) -> None:
            taken.set()
            await asyncio.Event().wait()

        message_id = await bus.publish(STREAM, {"n": 7})
        async with Reading(bus, hold), asyncio.timeout(LIMIT_S):
            await taken.wait()
        reader = Reader()
        async with Reading(bus, reader):
            (delivery,) = await reader.wait_for(1)
        assert delivery.id == message_id
        assert delivery.redelivered

    async def test_a_member_that_works_already_takes_over_from_one_that_dies(self, bus: MessageBus) -> None:
        taken = asyncio.Event()

        async def hold(_: Delivery) -> None:
            taken.set()
            await asyncio.Event().wait()

        reader = Reader()
        async with Reading(bus, hold):
            message_id = await bus.publish(STREAM, {"n": 7})
            async with asyncio.timeout(LIMIT_S):
                await taken.wait()
            second = asyncio.ensure_future(bus.subscribe(STREAM, "readers", reader, start_from="0"))
            await asyncio.sleep(0.05)
            assert not reader.deliveries
        (delivery,) = await reader.wait_for(1)
        await bus.close()
        await second
        assert delivery.id == message_id
        assert delivery.redelivered

    async def test_a_group_keeps_its_place_while_it_has_no_member(self, bus: MessageBus) -> None:
        first, second = Reader(), Reader()
        async with Reading(bus, first):
            await bus.publish(STREAM, {"n": 0})
            await first.wait_for(1)
            # What is acknowledged does not come again; the last one may, where its member ends before it is acknowledged.
            await bus.publish(STREAM, {"n": 1})
            await first.wait_for(2)
            await asyncio.sleep(0.5)
        for n in range(2, 5):
            await bus.publish(STREAM, {"n": n})
        async with Reading(bus, second, start=">"):
            await second.wait_for(3)
        assert first.numbers == [0, 1]
        assert second.numbers == [2, 3, 4]

    async def test_a_group_that_fails_keeps_nothing_from_another(self, bus: MessageBus) -> None:
        failing, well = Reader(failures=100), Reader()
        async with Reading(bus, failing, group="a"), Reading(bus, well, group="b"):
            for n in range(5):
                await bus.publish(STREAM, {"n": n})
            await well.wait_for(5)
            await failing.wait_for(15)
        assert well.numbers == list(range(5))
        assert failing.numbers == [n for n in range(5) for _ in range(3)]

    async def test_a_dead_letter_that_cannot_be_handled_is_dropped(self, bus: MessageBus) -> None:
        grave, deeper = f"{STREAM}.dead", Reader()
        dead, undertaker = Reader(failures=3), Reader(failures=3)
        async with (
            Reading(bus, dead),
            Reading(bus, undertaker, stream=grave),
            Reading(bus, deeper, stream=f"{grave}.dead"),
        ):
            await bus.publish(STREAM, {"n": 0})
            await undertaker.wait_for(3)
            await bus.publish(STREAM, {"n": 1})
            await dead.wait_for(4)
            await asyncio.sleep(0.05)
        assert len(undertaker.deliveries) == 3
        assert not deeper.deliveries

    async def test_what_is_acknowledged_on_receipt_comes_once_whatever_becomes_of_it(self, bus: MessageBus) -> None:
        reader, undertaker = Reader(failures=2), Reader()
        async with (
            Reading(bus, reader, acknowledge=Acknowledge.ON_RECEIPT),
            Reading(bus, undertaker, stream=f"{STREAM}.dead"),
        ):
            for n in range(5):
                await bus.publish(STREAM, {"n": n})
            await reader.wait_for(5)
            await asyncio.sleep(0.2)
        assert reader.numbers == list(range(5))
        assert not any(delivery.redelivered for delivery in reader.deliveries)
        assert not undertaker.deliveries

    async def test_what_is_acknowledged_on_receipt_is_lost_with_its_member(self, bus: MessageBus) -> None:
        taken = asyncio.Event()

        async def hold(_: Delivery) -> None:
            taken.set()
            await asyncio.Event().wait()

        await bus.publish(STREAM, {"n": 0})
        async with Reading(bus, hold, acknowledge=Acknowledge.ON_RECEIPT), asyncio.timeout(LIMIT_S):
            await taken.wait()
        await bus.publish(STREAM, {"n": 1})
        reader = Reader()
        async with Reading(bus, reader):
            await reader.wait_for(1)
            await asyncio.sleep(0.2)
        assert reader.numbers == [1]

    async def test_what_has_had_its_last_try_is_buried_also_by_a_member_that_acknowledges_on_receipt(
        self, bus: MessageBus
    ) -> None:
        taken = asyncio.Event()

        async def hold(_: Delivery) -> None:
            taken.set()
            await asyncio.Event().wait()

        message_id = await bus.publish(STREAM, {"n": 0})
        for _ in range(3):
            taken.clear()
            async with Reading(bus, hold), asyncio.timeout(LIMIT_S):
                await taken.wait()
        reader, undertaker = Reader(), Reader()
        async with (
            Reading(bus, reader, acknowledge=Acknowledge.ON_RECEIPT),
            Reading(bus, undertaker, stream=f"{STREAM}.dead"),
        ):
            (burial,) = await undertaker.wait_for(1)
        assert not reader.deliveries
        assert isinstance(burial.body, DeadLetter)
        assert (burial.body.envelope.id, burial.body.tries) == (message_id, 3)

    async def test_a_message_that_is_sent_again_keeps_the_id_it_is_given(self, bus: MessageBus) -> None:
        first = await bus.publish(STREAM, {"n": 0})
        again = await bus.publish(STREAM, {"n": 0}, message_id=first)
        other = await bus.publish(STREAM, {"n": 1})
        reader = Reader()
        async with Reading(bus, reader):
            deliveries = await reader.wait_for(3)
        assert first == again != other
        assert [delivery.id for delivery in deliveries] == [first, first, other]

    async def test_a_handler_may_publish(self, bus: MessageBus) -> None:
        async def double(delivery: Delivery) -> None:
            assert isinstance(delivery.body, dict)
            await bus.publish(f"{STREAM}.doubled", {"n": 2 * int(str(delivery.body["n"]))})

        reader = Reader()
        async with Reading(bus, double), Reading(bus, reader, stream=f"{STREAM}.doubled"):
            for n in range(5):
                await bus.publish(STREAM, {"n": n})
            await reader.wait_for(5)
        assert reader.numbers == [0, 2, 4, 6, 8]

    async def test_a_beginning_that_does_not_exist_is_refused(self, bus: MessageBus) -> None:
        try:
            await bus.subscribe(STREAM, "readers", Reader(), start_from="$")
        except ConfigError as error:
            assert "start_from" in error.what
        else:
            raise AssertionError("a wrong beginning was accepted")

    async def test_a_dictionary_arrives_equal_and_is_never_changed(self, bus: MessageBus) -> None:
        sent: dict[str, object] = {
            "none": None,
            "flag": True,
            "n": 2**63,
            "ratio": 0.1,
            "text": "ä.b",
            "bytes": b"\x00\xff",
            "when": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
            "list": [1, "two", [3.0], {}],
            "dotted.key": {"deep": {"er": []}},
        }
        before = copy.deepcopy(sent)
        reader = Reader()
        async with Reading(bus, reader):
            await bus.publish(STREAM, sent)
            (delivery,) = await reader.wait_for(1)
        assert delivery.body == before == sent
        assert delivery.body is not sent

    async def test_a_contract_arrives_as_itself(self, bus: MessageBus) -> None:
        signal = HealthSignal(layer_id="fc", seed_idx=0, timestamp=datetime.now(UTC), metrics={"grad_norm": 0.25})
        batch = HealthBatch(run_id="run-1", step=3, signals=(signal,))
        reader = Reader()
        async with Reading(bus, reader, stream=HEALTH.stream):
            await bus.publish(HEALTH.stream, batch, run_id="run-1")
            (delivery,) = await reader.wait_for(1)
        assert delivery.body == batch
        assert delivery.run_id == "run-1"

    async def test_a_dictionary_on_a_declared_stream_becomes_its_contract(self, bus: MessageBus) -> None:
        reader = Reader()
        async with Reading(bus, reader, stream=COMPILATIONS.stream):
            await bus.publish(COMPILATIONS.stream, {"blueprint_id": "sha256:0", "status": "started"})
            (delivery,) = await reader.wait_for(1)
        assert delivery.body == CompilationEvent(blueprint_id="sha256:0", status="started")

    async def test_a_message_that_breaks_its_contract_is_refused_at_the_sender(self, bus: MessageBus) -> None:
        for wrong in ({"blueprint_id": 3}, {"n": 1}):
            try:
                await bus.publish(OUTCOMES.stream, dict(wrong))
            except ContractError as error:
                assert error.why
            else:
                raise AssertionError("a broken message was accepted")

    async def test_health_is_asked_there_and_then_and_changes_nothing(self, bus: MessageBus) -> None:
        before = await bus.health()
        assert (before.usable, before.why, before.messages) == (True, "", 0)
        assert before.server
        for n in range(3):
            await bus.publish(STREAM, {"n": n})
        after = await bus.health()
        assert (after.usable, after.streams, after.messages) == (True, 1, 3)
        assert after.answered_s < LIMIT_S
        reader = Reader()
        async with Reading(bus, reader):
            await reader.wait_for(3)
        assert reader.numbers == [0, 1, 2]

    async def test_close_lets_the_handler_finish_the_message_in_hand(self, bus: MessageBus) -> None:
        began, finished = asyncio.Event(), asyncio.Event()

        async def slow(_: Delivery) -> None:
            began.set()
            await asyncio.sleep(0.1)
            finished.set()

        async with Reading(bus, slow) as subscription:
            await bus.publish(STREAM, {"n": 0})
            async with asyncio.timeout(LIMIT_S):
                await began.wait()
                await bus.close()
                await subscription
        assert finished.is_set()

    async def test_a_closed_bus_refuses_work_and_may_be_closed_again(self, bus: MessageBus) -> None:
        await bus.close()
        await bus.close()
        for work in (bus.publish(STREAM, {"n": 0}), bus.subscribe(STREAM, "readers", Reader()), bus.health()):
            try:
                await work
            except BusUnavailable as error:
                assert "closed" in error.what
            else:
                raise AssertionError("a closed bus took work")
