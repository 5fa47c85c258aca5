"""Health signals and the table of streams."""

from datetime import UTC, datetime

import msgspec
import pytest

from esper.contracts.health import HealthBatch, HealthSignal
from esper.contracts.ids import new_id
from esper.contracts.topics import HEALTH, TOPICS, Topic

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def signal(score: float | None = None) -> HealthSignal:
    return HealthSignal(layer_id="fc", seed_idx=0, timestamp=NOW, metrics={"grad_norm": 0.25}, health_score=score)


@pytest.mark.parametrize("score", [None, 0.0, 1.0, 0.5])
def test_a_health_score_lies_from_0_to_1_or_is_not_there_yet(score: float | None) -> None:
    assert signal(score).health_score == score


@pytest.mark.parametrize("score", [-0.001, 1.001, float("nan"), float("inf")])
def test_another_health_score_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        signal(score)


def test_a_bad_score_is_refused_on_arrival_too() -> None:
    sent = msgspec.msgpack.encode(
        {"layer_id": "fc", "seed_idx": 0, "timestamp": NOW, "metrics": {}, "health_score": 2.0}
    )
    with pytest.raises(msgspec.ValidationError, match="health_score"):
        msgspec.msgpack.decode(sent, type=HealthSignal)


def test_a_batch_keeps_the_order_and_the_names_of_what_was_not_finite() -> None:
    first, second = (
        signal(0.5),
        msgspec.structs.replace(signal(0.0), nonfinite=("grad_norm",), rank=1, step=7, run_id="r"),
    )
    batch = HealthBatch(run_id="r", step=7, signals=(first, second))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(batch), type=HealthBatch) == batch


def test_a_signal_of_a_later_version_can_be_read() -> None:
    fields = {**msgspec.to_builtins(signal(), builtin_types=(datetime,)), "humidity": 0.5}
    assert msgspec.convert(fields, HealthSignal) == signal()


def test_a_signal_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        signal().step = 3  # type: ignore[misc]


# Names, readers and what may be lost are promises to whoever runs the parts on their own.
STREAMS = {
    "telemetry.seed.health": ("HealthBatch", True),
    "control.adaptation.decision": ("AdaptationDecision", False),
    "blueprints.submitted": ("BlueprintSubmitted", False),
    "system.events.epoch": ("EpochEvent", False),
    "innovation.field_reports": ("Outcome", False),
    "compilation.events": ("CompilationEvent", False),
}


def test_the_streams_are_these_and_only_health_may_be_dropped() -> None:
    assert {name: (topic.model.__name__, topic.lossy) for name, topic in TOPICS.items()} == STREAMS


@pytest.mark.parametrize("topic", TOPICS.values(), ids=lambda topic: topic.stream)
def test_every_stream_has_somebody_who_writes_and_somebody_who_reads(topic: Topic) -> None:
    parts = {"tolaria", "tamiyo", "tezzeret", "urza", "nissa"}
    assert topic.writers
    assert topic.readers
    assert {*topic.writers, *topic.readers} <= parts
    assert topic.version >= 1


def test_streams_are_found_by_their_name() -> None:
    assert TOPICS["telemetry.seed.health"] is HEALTH


def test_a_fresh_id_says_what_it_names() -> None:
    first, second = new_id("run"), new_id("run")
    assert first != second
    assert first.startswith("run-")
    assert len(first) == len("run-") + 12
