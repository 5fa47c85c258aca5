"""What a message bus is measured by: each metric declared once, at a cost that a bus does not feel.

A bus keeps plain numbers; they become metrics when somebody asks. So a measurement takes no lock and no look-up of labels.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from esper.telemetry.metrics import OTHER, BoundedLabel

BOUNDS_S: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
"""Upper ends of the classes: from a twentieth of the specified millisecond to what an operator calls an outage."""

MOST_STREAMS: Final = 32
"""Streams that are told apart; this project declares six, with as many of dead letters."""


class Latency:
    """Durations, counted by class; one writer at a time."""

    __slots__ = ("counts", "total_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration; one below zero, which clocks of two machines can give, counts as zero."""
        seconds = max(seconds, 0.0)
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.total_s += seconds

    def instant(self) -> None:
        """Count what did not wait at all, without looking at a clock."""
        self.counts[0] += 1


def since(sent_at: datetime) -> float:
    """Return the seconds since a moment, by the clock of this machine."""
    return (datetime.now(UTC) - sent_at).total_seconds()


class StreamTimes:
    """How long things take on one stream.

    Attributes:
        publish: From the call until the bus holds the message, or all of a batch.
        consume: From when the first message of a batch was sent until its handler is called, by the clocks of both.
        acknowledge: Until a batch of acknowledgements is kept.
    """

    __slots__ = ("acknowledge", "consume", "publish")

    def __init__(self) -> None:
        self.publish, self.consume, self.acknowledge = Latency(), Latency(), Latency()


class BusTimes(dict[str, StreamTimes]):
    """Times by stream; the first so many streams to come are told apart, the rest are ``other``."""

    def __missing__(self, stream: str) -> StreamTimes:
        if len(self) >= MOST_STREAMS and stream != OTHER:
            return self[OTHER]
        return self.setdefault(stream, StreamTimes())


@dataclass(frozen=True)
class Tally:
    """What one process has done for a group.

    Attributes:
        stream: The stream.
        group: The group.
        redelivered: Tries after the first.
        dead: Messages that went to the dead letters.
        lost: Messages that were trimmed before the group saw them.
    """

    stream: str
    group: str
    redelivered: int
    dead: int
    lost: int


@dataclass(frozen=True)
class Waiting:
    """What waits for a group.

    Attributes:
        stream: The stream.
        group: The group.
        lag: Messages that were not handed out to it, or None where that cannot be told.
        depth: Messages that it has not finished, or None where that cannot be told.
    """

    stream: str
    group: str
    lag: int | None
    depth: int | None


class BusSource(Protocol):
    """What is measured: a bus, or one that is looked at from outside."""

    @property
    def times(self) -> BusTimes:
        """How long things take, by stream."""
        ...

    def tallies(self) -> list[Tally]:
        """Return what was done, by stream and group."""
        ...

    def waiting(self) -> list[Waiting]:
        """Return what waits, by stream and group; nothing where it cannot be known."""
        ...


class BusCollector(Collector):
    """Gives what buses were measured by to Prometheus when it asks.

    Streams beyond ``MOST_STREAMS`` and groups beyond ``MOST_LABELS`` count together as ``other``; so do, under the part before
    it, groups that have the id of a run behind a full stop.

    Args:
        sources: Buses by what they are called in the label ``bus``.
    """

    def __init__(self, sources: Mapping[str, BusSource]) -> None:
        self._sources = dict(sources)
        self._streams, self._groups = BoundedLabel(MOST_STREAMS), BoundedLabel()

    def collect(self) -> Iterator[Metric]:
        """Yield every metric once."""
        yield self._latency("publish", "From the call until the bus holds a message or batch.", lambda t: t.publish)
        yield self._latency("consume", "From sending to handing out, first message of a batch.", lambda t: t.consume)
        yield self._latency("acknowledge", "Until a batch of acknowledgements is kept.", lambda t: t.acknowledge)
        yield self._counter("redeliveries", "Tries after the first.", lambda tally: tally.redelivered)
        yield self._counter("dead_letters", "Messages that no try could deliver.", lambda tally: tally.dead)
        yield self._counter("lost_messages", "Messages trimmed before the group saw them.", lambda tally: tally.lost)
        yield self._gauge("lag", "Messages that were not handed out yet; NaN: not known.", lambda waiting: waiting.lag)
        yield self._gauge("depth", "Messages that are not finished; NaN: not known.", lambda waiting: waiting.depth)

    def _latency(self, name: str, told: str, which: Callable[[StreamTimes], Latency]) -> Metric:
        family = HistogramMetricFamily(f"esper_oona_{name}_seconds", told, labels=["bus", "stream"])
        for bus, source in self._sources.items():
            for stream, times in list(source.times.items()):
                latency = which(times)
                counts = list(latency.counts)
                if any(counts):
                    family.add_metric([bus, stream], _cumulative(counts), latency.total_s)
        return family

    def _counter(self, name: str, told: str, which: Callable[[Tally], int]) -> Metric:
        family = CounterMetricFamily(f"esper_oona_{name}", told, labels=["bus", "stream", "group"])
        sums: dict[tuple[str, str, str], float] = {}
        for bus, source in self._sources.items():
            for tally in source.tallies():
                key = self._key(bus, tally.stream, tally.group)
                sums[key] = sums.get(key, 0) + which(tally)
        for labels, value in sums.items():
            family.add_metric(labels, value)
        return family

    def _gauge(self, name: str, told: str, which: Callable[[Waiting], int | None]) -> Metric:
        family = GaugeMetricFamily(f"esper_oona_{name}_messages", told, labels=["bus", "stream", "group"])
        sums: dict[tuple[str, str, str], float] = {}
        for bus, source in self._sources.items():
            for waiting in source.waiting():
                key, value = self._key(bus, waiting.stream, waiting.group), which(waiting)
                sums[key] = sums.get(key, 0) + (math.nan if value is None else value)
        for labels, summed in sums.items():
            family.add_metric(labels, summed)
        return family

    def _key(self, bus: str, stream: str, group: str) -> tuple[str, str, str]:
        return bus, self._streams.of(stream), self._groups.of(group.partition(".")[0])


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    return list(zip([*map(floatToGoString, BOUNDS_S), "+Inf"], map(float, accumulate(counts)), strict=True))
