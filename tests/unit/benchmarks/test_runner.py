"""The runner of the benchmarks, on questions that are asked for the test alone."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as runner
from benchmarks.support import report as reports
from benchmarks.support.report import Answer, Target

FIELDS = [
    "name",
    "commit",
    "hardware",
    "versions",
    "seed",
    "quick",
    "method",
    "metrics",
    "baselines",
    "ratios",
    "targets",
]


def asked(monkeypatch: pytest.MonkeyPatch, measured: float) -> list[dict[str, object]]:
    """Put a question in the place of ``startup`` that finds ``measured``; return what it is asked with."""
    calls: list[dict[str, object]] = []

    def answer(**given: object) -> Answer:
        calls.append(given)
        found = Answer(
            method="planted", metrics={"a_s": measured}, baselines={"b_s": 2.0}, ratios={"a_over_b": measured / 2}
        )
        found.targets.append(Target("a_s", "<=", 1.0, measured))
        return found

    monkeypatch.setattr(runner, "import_module", lambda name: SimpleNamespace(answer=answer))
    return calls


def test_a_met_target_ends_with_zero_and_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = asked(monkeypatch, 0.5)
    assert runner.main(["startup", "--quick", "--json", "--seed", "7"]) == 0
    assert calls == [{"quick": True, "seed": 7}]
    found = json.loads(capsys.readouterr().out)
    assert list(found) == FIELDS
    assert (found["name"], found["seed"], found["quick"], found["metrics"]) == ("startup", 7, True, {"a_s": 0.5})
    assert found["targets"] == [{"metric": "a_s", "op": "<=", "value": 1.0, "measured": 0.5, "met": True}]
    assert {"cpu", "cores", "memory_gib"} <= set(found["hardware"])
    assert {"python", "torch"} <= set(found["versions"])


def test_a_missed_target_ends_with_the_code_of_a_failed_gate_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(monkeypatch, 1.5)
    assert runner.main(["startup"]) == 4
    text = capsys.readouterr().out
    assert "UNMET" in text
    assert "a_over_b" in text


def test_the_object_is_also_written_to_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked(monkeypatch, 0.5)
    path = tmp_path / "results" / "startup.json"
    runner.main(["startup", "--json", "--out", str(path)])
    assert path.read_text(encoding="utf-8") == capsys.readouterr().out


def test_an_unknown_question_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["dormnt"]) == 3
    assert "did you mean dormant?" in capsys.readouterr().err
    assert runner.main(["xyz"]) == 3
    assert f"there are {', '.join(runner.names())}" in capsys.readouterr().err


def test_wrong_usage_ends_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        runner.main(["dormant", "--fast"])
    assert ended.value.code == 2
    capsys.readouterr()


def test_every_file_of_the_folder_is_a_question_with_an_answer() -> None:
    assert set(runner.names()) >= {"chaos-bus", "dormant", "graft", "startup"}
    for name in runner.names():
        assert callable(import_module(runner.module(name)).answer)


@pytest.mark.parametrize(
    ("op", "measured", "met"),
    [("<=", 1.0, True), ("<", 1.0, False), (">=", 1.0, True), (">", 1.0, False), ("==", 1.0, True), ("==", 0.9, False)],
)
def test_a_target_is_met_exactly_at_its_bar_or_not(op: str, measured: float, met: bool) -> None:
    assert Target("m", op, 1.0, measured).met is met


def test_a_figure_that_is_not_a_number_meets_no_target() -> None:
    assert not any(Target("m", op, 1.0, float("nan")).met for op in reports.OPERATORS)


def test_outside_of_git_the_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reports, "ROOT", tmp_path)
    assert reports.commit() == "unknown"
