"""Metrics are declared once, in a registry of their own, with label values that stay few."""

import prometheus_client
from prometheus_client import generate_latest

from esper.telemetry.metrics import MOST_LABELS, OTHER, BoundedLabel, Metrics, counted


def test_two_sets_of_metrics_do_not_meet_and_the_global_registry_stays_untouched() -> None:
    before = generate_latest(prometheus_client.REGISTRY)
    one, other = Metrics(), Metrics()
    one.outcomes.labels("kept").inc()
    assert counted(one.outcomes, "verdict") == {"kept": 1}
    assert counted(other.outcomes, "verdict") == {}
    assert b"esper" not in before
    assert b"esper" not in generate_latest(prometheus_client.REGISTRY)


def test_the_names_are_the_specified_ones() -> None:
    metrics = Metrics()
    metrics.adaptations.labels("load_kernel", "plateau").inc(2)
    text = generate_latest(metrics.registry).decode()
    assert 'esper_adaptations_total{strategy="plateau",type="load_kernel"} 2.0' in text


def test_other_labels_are_summed_over() -> None:
    metrics = Metrics()
    metrics.adaptations.labels("load_kernel", "plateau").inc(2)
    metrics.adaptations.labels("load_kernel", "random_growth").inc()
    assert counted(metrics.adaptations, "type") == {"load_kernel": 3}
    assert counted(metrics.adaptations, "strategy") == {"plateau": 2, "random_growth": 1}


def test_an_open_label_keeps_its_first_values_and_calls_the_rest_other() -> None:
    label = BoundedLabel()
    values = [label.of(f"strategy{n}") for n in range(MOST_LABELS + 5)]
    assert values[:MOST_LABELS] == [f"strategy{n}" for n in range(MOST_LABELS)]
    assert set(values[MOST_LABELS:]) == {OTHER}
    assert label.of("strategy0") == "strategy0"
