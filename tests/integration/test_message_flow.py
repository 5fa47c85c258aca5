"""The specification's message flow, over a real Redis: a signal becomes a decision, and the decision is applied.

The text awaits an endless ``subscribe`` before it publishes; here subscriptions are tasks, and the execution layer has a
group of its own per run.
"""

import asyncio
import copy
from collections.abc import AsyncIterator

import pytest

from esper.contracts.adaptation import AdaptationDecision
from esper.errors import BusUnavailable, ConfigError, ContractError
from esper.services import OonaClient
from esper.services.contracts import HealthSignal
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.servers import RedisServer

LIMITS = RedisBusConfig(block_s=0.05, claim_idle_s=1.0)
SIGNAL: dict[str, object] = {
    "layer_id": "model.layer1",
    "seed_idx": 0,
    "health_score": 0.95,
    "metrics": {"latency_ms": 1.2, "accuracy": 0.98},
}


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[OonaClient]:
    async with OonaClient(redis_server.url, config=LIMITS) as client:
        yield client


async def test_a_signal_becomes_a_decision_and_the_decision_is_applied(redis_server: RedisServer) -> None:
    execution, tamiyo = (OonaClient(redis_server.url, config=LIMITS) for _ in range(2))
    seen: list[HealthSignal] = []
    applied: asyncio.Queue[AdaptationDecision] = asyncio.Queue()

    async def process_health_signal(data: dict[str, object]) -> None:
        signal = HealthSignal(**data)  # type: ignore[arg-type]
        seen.append(signal)
        decision: dict[str, object] = {
            "action": "load_kernel",
            "target_layer": signal.layer_id,
            "kernel_id": "kernel_xyz",
            "strategy": "performance_optimization",
        }
        await tamiyo.publish("control.adaptation.decision", decision)

    async def apply_adaptation(data: dict[str, object]) -> None:
        await applied.put(AdaptationDecision.model_validate(data))

    async with execution, tamiyo, asyncio.TaskGroup() as services:
        services.create_task(tamiyo.subscribe("telemetry.seed.health", "tamiyo-service", process_health_signal, "0"))
        services.create_task(
            execution.subscribe("control.adaptation.decision", "execution-service.run-1", apply_adaptation, "0")
        )
        before = copy.deepcopy(SIGNAL)
        message_id = await execution.publish("telemetry.seed.health", SIGNAL)
        async with asyncio.timeout(10):
            decision = await applied.get()
        await execution.close()
        await tamiyo.close()
    assert before == SIGNAL
    assert message_id
    assert [(signal.layer_id, signal.health_score, signal.metrics) for signal in seen] == [
        ("model.layer1", 0.95, SIGNAL["metrics"])
    ]
    assert (decision.target_layer, decision.kernel_id) == ("model.layer1", "kernel_xyz")
    assert applied.empty()


async def test_a_plain_dictionary_arrives_equal(client: OonaClient) -> None:
    sent: dict[str, object] = {"a.b": None, "list": [1, "2", [3.0]], "raw": b"\x00", "deep": {"er": {}}, "yes": True}
    found: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        tasks.create_task(client.subscribe("anything", "readers", found.put, "0"))
        await client.publish("anything", sent)
        assert await found.get() == sent
        await client.close()


async def test_topics_are_made_empty_and_listed_sorted(client: OonaClient, redis_server: RedisServer) -> None:
    redis_server.ask("SET no.stream 1")
    await client.create_topic("b.topic")
    await client.create_topic("a.topic", max_length=100)
    await client.create_topic("a.topic", max_length=100)
    assert await client.list_topics() == ["a.topic", "b.topic"]
    assert redis_server.ask("XLEN a.topic") == b":0\r\n"
    for n in range(400):
        await client.publish("a.topic", {"n": n})
    assert int(redis_server.ask("XLEN a.topic")[1:]) < 400
    with pytest.raises(ConfigError, match="0 messages"):
        await client.create_topic("c.topic", max_length=0)


async def test_it_connects_by_itself_and_can_be_opened_again(redis_server: RedisServer) -> None:
    client = OonaClient(redis_server.url, config=LIMITS)
    await client.publish("anything", {"n": 1})
    await client.close()
    await client.connect()
    assert await client.list_topics() == ["anything"]
    await client.close()


async def test_what_is_no_signal_and_a_server_that_is_not_there_are_told(client: OonaClient) -> None:
    with pytest.raises(ContractError, match="health_score"):
        await client.publish("telemetry.seed.health", SIGNAL | {"health_score": 2.0})
    with pytest.raises(BusUnavailable):
        await OonaClient("redis://127.0.0.1:1").connect()
