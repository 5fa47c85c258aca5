"""The page of benchmarks says what the benchmarks ask and what their committed results found, met or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import names
from tools import benchmarks


def bar(measured: float) -> dict[str, Any]:
    return {"metric": "lag_ms", "op": "<=", "value": 2.0, "measured": measured, "met": True}


def report(name: str, *bars: dict[str, Any]) -> str:
    hardware, versions = {"cpu": "abacus", "cores": 2}, {"torch": "2.13.0"}
    return json.dumps(
        {"name": name, "commit": "0123456789", "hardware": hardware, "versions": versions, "targets": bars}
    )


def test_the_page_is_what_benchmarks_and_results_give() -> None:
    assert benchmarks.PAGE.read_text(encoding="utf-8") == benchmarks.page(), "run python -m tools.benchmarks"


def test_every_benchmark_asks_something_and_is_held_against_something() -> None:
    assert set(benchmarks.CONTROLS) == set(names())
    for name in names():
        asked, _ = benchmarks.question(name)
        assert "?" in asked, name


def test_every_committed_result_is_of_a_benchmark_that_is_there_and_was_run_whole() -> None:
    found = benchmarks.results()
    assert set(found) <= set(names())
    assert not [held["file"] for reports in found.values() for held in reports if held["quick"]]


def test_a_bar_is_met_by_what_was_measured_and_not_by_what_a_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    (tmp_path / "oona.json").write_text(report("oona", bar(1.5), bar(2.5)))
    (tmp_path / "oona-more.json").write_text(report("oona", bar(12345.6)))
    text = benchmarks.page()
    assert "| [oona](#oona) | " in text
    assert "| 1 of 3 bars met |" in text
    assert "| lag_ms | 1.5 | <= 2 | met |" in text
    assert "| lag_ms | 2.5 | <= 2 | **unmet** |" in text
    assert "| lag_ms | 12,346 | <= 2 | **unmet** |" in text
    assert "[oona-more.json](../benchmarks/results/oona-more.json), commit 0123456, 2 cores of abacus" in text


def test_a_study_has_its_arms_best_first_with_the_distance_of_the_one_that_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arm(points: float, above: float) -> dict[str, Any]:
        figures = {"test_mean": points, "test_error": 0.5, "test_loss": 0.25, "test_loss_error": 0.01, "params": 1234}
        difference = {"mean": above, "error": 0.4, "interval": 1.2, "seeds": 8}
        return {**figures, "gflops": 2.0, "overhead_share": 0.04, "reference_less_this": difference}

    table = {"use": "size unknown", "task": "digits", "reference": "esper"}
    table |= {"arms": {"static 4": arm(90.0, 1.0), "esper": arm(91.0, 0.0)}}
    table |= {"tuning": {"static 4": {"rate": 0.02, "at_edge": True, "grid": {}}}}
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    (tmp_path / "growth.json").write_text(json.dumps({**json.loads(report("growth", bar(1.0))), "tables": [table]}))
    text = benchmarks.page()
    assert "### size unknown, digits" in text
    esper = "| esper | 91.00 ± 0.50 | 0.2500 ± 0.0100 | 1,234 | 2.0 | 4.0% |  |  |"
    static = "| static 4 | 90.00 ± 0.50 | 0.2500 ± 0.0100 | 1,234 | 2.0 | 4.0% | 0.02 (edge) | +1.00 ± 1.20 |"
    assert f"{esper}\n{static}\n" in text


def test_the_command_writes_the_page_once_and_finds_a_stale_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    monkeypatch.setattr(benchmarks, "page", lambda: "as it is now")
    assert benchmarks.main(["--check"]) == 1
    assert benchmarks.main([]) == 0
    assert benchmarks.main(["--check"]) == 0
    benchmarks.PAGE.write_text("as it was")
    assert benchmarks.main(["--check"]) == 1
