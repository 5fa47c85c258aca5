"""What buses are measured by is what Prometheus' own metrics would say, with labels from a bounded set."""

import asyncio
import timeit
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from esper.ports import Delivery
from esper.services.oona.journal import Journal
from esper.services.oona.memory_bus import MemoryBus, MemoryBusConfig
from esper.telemetry.bus_metrics import BOUNDS_S, MOST_STREAMS, BusCollector, BusTimes, Latency, Tally, Waiting
from esper.testing.bus_readers import Reader, Reading

DURATIONS = (-0.2, 0.0, 0.00005, 0.000051, 0.001, 0.3, 9.99, 10.0, 11.0)


class Source:
    """A bus of which only the numbers are there."""

    def __init__(self, tallies: list[Tally] | None = None, waiting: list[Waiting] | None = None) -> None:
        self.times = BusTimes()
        self._tallies, self._waiting = tallies or [], waiting or []

    def tallies(self) -> list[Tally]:
        return self._tallies

    def waiting(self) -> list[Waiting]:
        return self._waiting


def shown(**sources: object) -> dict[str, float]:
    """Return every sample by name and labels."""
    registry = CollectorRegistry()
    registry.register(BusCollector(sources))  # type: ignore[arg-type]
    lines = generate_latest(registry).decode().splitlines()
    samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def test_durations_are_counted_as_prometheus_counts_them() -> None:
    registry, source = CollectorRegistry(), Source()
    its_own = Histogram(
        "esper_oona_publish_seconds", "x", ["bus", "stream"], buckets=BOUNDS_S, registry=registry
    ).labels("local", "s")
    for seconds in DURATIONS:
        its_own.observe(max(0.0, seconds))
        source.times["s"].publish.observe(seconds)
    wanted = [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]
    found = shown(local=source)
    for line in wanted:
        name, _, value = line.rpartition(" ")
        if not line.startswith("#"):
            assert found[name] == pytest.approx(float(value)), name


def test_a_measurement_costs_a_fraction_of_what_prometheus_takes() -> None:
    its_own = Histogram("x", "y", ["stream"], buckets=BOUNDS_S, registry=CollectorRegistry())
    times = BusTimes()

    def cost(act: Callable[[], object]) -> float:
        return min(timeit.repeat(act, number=500, repeat=20))

    assert cost(lambda: times["s"].publish.observe(0.001)) < 0.7 * cost(lambda: its_own.labels("s").observe(0.001))


def test_what_did_not_wait_counts_as_the_shortest_time() -> None:
    latency = Latency()
    latency.instant()
    assert (latency.counts[0], sum(latency.counts), latency.total_s) == (1, 1, 0.0)


def test_streams_and_groups_are_told_apart_up_to_a_number_and_none_is_lost() -> None:
    tallies = [Tally(f"s{n}", f"execution-service.run-{n}", 1, 2, 3) for n in range(500)]
    source = Source(tallies, [Waiting("s0", f"g{n}", 1, 2) for n in range(500)])
    for n in range(500):
        source.times[f"s{n}"].publish.observe(0.001)
    found = shown(local=source)
    assert len(found) < 5 * (MOST_STREAMS + 1) + (MOST_STREAMS + 1) * (len(BOUNDS_S) + 3) + 70
    assert sum(value for name, value in found.items() if name.startswith("esper_oona_redeliveries_total")) == 500
    assert sum(value for name, value in found.items() if name.startswith("esper_oona_lag_messages")) == 500
    assert sum(value for name, value in found.items() if name.startswith("esper_oona_publish_seconds_count")) == 500
    assert 'esper_oona_dead_letters_total{bus="local",group="execution-service",stream="s7"}' in found
    assert len(source.times) == MOST_STREAMS + 1


def test_what_is_not_known_is_not_a_number() -> None:
    found = shown(local=Source(waiting=[Waiting("s", "g", None, None), Waiting("s", "h", 3, 4)]))
    assert found['esper_oona_lag_messages{bus="local",group="g",stream="s"}'] != 0
    assert str(found['esper_oona_lag_messages{bus="local",group="g",stream="s"}']) == "nan"
    assert found['esper_oona_depth_messages{bus="local",group="h",stream="s"}'] == 4


@pytest.mark.parametrize("journaled", [False, True])
async def test_the_bus_of_one_process_measures_itself(journaled: bool, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "bus.journal") if journaled else None
    held, go_on = asyncio.Event(), asyncio.Event()

    async def hold(_: Delivery) -> None:
        held.set()
        await go_on.wait()

    reader = Reader(failures=4)
    async with MemoryBus(MemoryBusConfig(retry_delay_s=0.001), journal=journal) as bus:
        async with Reading(bus, reader, stream="s", group="readers"):
            for n in range(3):
                await bus.publish("s", {"n": n})
            await reader.wait_for(6)  # 3 tries and dead, 2 tries, 1 try
            await bus.drain(limit_s=5)
        async with Reading(bus, hold, stream="s", group="slow"), asyncio.timeout(5):
            await held.wait()
            found = shown(local=bus)
            go_on.set()
        key = '{bus="local",group="readers",stream="s"}'
        assert found[f"esper_oona_redeliveries_total{key}"] == 3
        assert found[f"esper_oona_dead_letters_total{key}"] == 1
        assert found[f"esper_oona_lost_messages_total{key}"] == 0
        assert (found[f"esper_oona_lag_messages{key}"], found[f"esper_oona_depth_messages{key}"]) == (0, 0)
        slow = '{bus="local",group="slow",stream="s"}'
        assert (found[f"esper_oona_lag_messages{slow}"], found[f"esper_oona_depth_messages{slow}"]) == (2, 3)
        assert found['esper_oona_publish_seconds_count{bus="local",stream="s"}'] == 3
        assert found['esper_oona_consume_seconds_count{bus="local",stream="s"}'] >= 2
        kept = [name for name in found if name.startswith("esper_oona_acknowledge_seconds_count")]
        assert bool(kept) is journaled
        waited = found['esper_oona_publish_seconds_sum{bus="local",stream="s"}']
        assert (waited > 0) is journaled
