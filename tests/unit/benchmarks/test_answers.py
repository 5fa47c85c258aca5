"""Every question is answered whole; what does not depend on how busy the machine is must be met."""

import math
from importlib import import_module
from importlib.util import find_spec

import pytest

from benchmarks.__main__ import module, names
from benchmarks.support.report import Answer

CERTAIN = {
    "chaos-bus": {
        "lost",
        "doubled",
        "disordered",
        "invented",
        "processes_that_crashed",
        "planted_lost_found",
        "planted_doubled_found",
    },
    "chaos-urza": {
        "lost_writes",
        "rows_without_bytes",
        "torn_versions",
        "half_writes",
        "lost_events",
        "invented_events",
        "moments_not_come_back_from",
        "planted_faults_found",
    },
    "graft": {
        "largest_logit_change",
        "smallest_zero_factor_gradient",
        "smallest_gradient_beside_largest",
        "rollback_equal",
    },
    "compiled": {"graphs compiled by a graft"},
    "hostile": {"unforeseen_errors", "forge_crashes", "jobs_left", "passed_and_wrong"},
    "kills": {"exact"},
    "oona": {"growth_memory_mib"},
    "startup": {"stray_bytes"},
    "tezzeret": {"child_peak_rss_mb"},
}
"""Targets that no clock decides."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", names())
def test_a_question_is_answered_with_figures_baselines_and_targets(name: str) -> None:
    if name == "gromo" and find_spec("gromo") is None:
        pytest.skip("GroMo is not here: it goes into an environment of its own")
    answer = import_module(module(name)).answer(quick=True, seed=0)
    assert isinstance(answer, Answer)
    assert answer.method
    for figures in (answer.metrics, answer.baselines, answer.ratios):
        assert figures
        assert all(math.isfinite(value) for value in figures.values())
    held = {target.metric: target.met for target in answer.targets}
    assert held
    assert [metric for metric in CERTAIN.get(name, set()) if not held[metric]] == []
