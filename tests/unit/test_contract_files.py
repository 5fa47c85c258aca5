"""What is made from the contracts of the bus is what they give, and a contract changes only so that old messages are read."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools import contracts


def test_documentation_and_schemas_are_what_the_contracts_give() -> None:
    stale = [path for path, text in contracts.made().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python -m tools.contracts"


def test_the_command_writes_what_is_missing_and_then_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contracts, "ROOT", tmp_path)
    monkeypatch.setattr(contracts, "SCHEMAS", tmp_path / "schemas")
    monkeypatch.setattr(contracts, "PAGE", tmp_path / "topics.md")
    assert contracts.main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert contracts.main([]) == 0
    assert (tmp_path / "topics.md").read_text(encoding="utf-8") == contracts.page()
    capsys.readouterr()
    assert contracts.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_a_change_that_old_messages_do_not_survive_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contracts, "ROOT", tmp_path)
    monkeypatch.setattr(contracts, "SCHEMAS", tmp_path)
    monkeypatch.setattr(contracts, "PAGE", tmp_path / "topics.md")
    contracts.main([])
    path = contracts.path_of("Outcome")
    older = path.read_text(encoding="utf-8").replace('"steps"', '"num_steps"')
    path.write_text(older, encoding="utf-8")
    assert contracts.main([]) == 1
    assert "$.num_steps is gone; give the contract a new version" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == older


Change = Callable[[dict[str, Any]], object]


def _signal(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"]["HealthSignal"]
    return found


SAFE: dict[str, Change] = {
    "nothing": lambda _: None,
    "a new field with a default": lambda s: _signal(s)["properties"].update(weather={"type": "string", "default": ""}),
    "another description": lambda s: _signal(s).update(description="Otherwise said."),
    "a field that need not be there any more": lambda s: _signal(s)["required"].remove("layer_id"),
}
BREAKING: dict[str, tuple[Change, str]] = {
    "a field is gone": (lambda s: _signal(s)["properties"].pop("rank"), "HealthSignal.rank is gone"),
    "a field is of another type": (
        lambda s: _signal(s)["properties"].update(rank={"type": "string"}),
        "HealthSignal.rank is of another kind",
    ),
    "a field is required now": (lambda s: _signal(s)["required"].append("step"), "HealthSignal.step is required now"),
    "a nested contract is gone": (lambda s: s["$defs"].pop("HealthSignal"), "HealthSignal is gone"),
}


@pytest.mark.parametrize("change", SAFE)
def test_a_change_that_old_messages_survive_is_no_fault(change: str) -> None:
    old = contracts.schema("HealthBatch")
    new = copy.deepcopy(old)
    SAFE[change](new)
    assert list(contracts.breaking(old, new)) == []


@pytest.mark.parametrize("change", BREAKING)
def test_a_change_that_old_messages_do_not_survive_is_seen(change: str) -> None:
    old = contracts.schema("HealthBatch")
    new = copy.deepcopy(old)
    apply, fault = BREAKING[change]
    apply(new)
    assert list(contracts.breaking(old, new)) == [fault]


def test_another_set_of_values_is_seen() -> None:
    old = contracts.schema("Outcome")
    new = json.loads(json.dumps(old).replace('"culled"', '"removed"'))
    assert list(contracts.breaking(old, new)) == ["Verdict has other values"]
