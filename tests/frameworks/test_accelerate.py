"""The recipe for Accelerate: it grows through the real forge, and goes on from ``load_state`` to the bit."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from esper.errors import ConfigError
from esper.kasmina import plan
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.growth import Growth
from esper.testing.controllers import GraftAt, Silent
from tests.frameworks.library import stock

pytest.importorskip("accelerate")
RECIPE = Path(__file__).resolve().parents[2] / "examples" / "accelerate_recipe.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accelerate_recipe", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Undo:
    """Grafts by hand after one step, undoes it after another, and takes digests of the run before and after."""

    def __init__(self, graft_at: int, undo_at: int) -> None:
        self._graft_at, self._undo_at = graft_at, undo_at
        self.before, self.after = "before", "after"
        self.digests: list[str] = []
        self.events: list[GrowthEvent] = []

    def __call__(self, growth: Growth) -> None:
        if growth.spent_steps == self._graft_at:
            self.before = growth.digest()
            growth.graft("2", "mlp_adapter")
        if growth.spent_steps == self._undo_at:
            growth.rollback(next(event for event in growth.events if event.kind is EventKind.GRAFTED))
            self.after = growth.digest()
        self.digests.append(growth.digest())
        self.events = [event for event in growth.events if event.kind is not EventKind.NOTHING]


@pytest.mark.slow
def test_the_recipe_grows_and_goes_on_from_its_state_as_if_it_had_not_stopped(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = {"controller": GraftAt(2), "late": "wait"}
    whole = recipe.train(60, tmp_path / "whole", **planted)
    assert "grafted" in capsys.readouterr().out
    shutil.copytree(tmp_path / "whole" / "library", tmp_path / "parts" / "library")
    first = recipe.train(60, tmp_path / "parts", until=45, **planted)
    rest = recipe.train(60, tmp_path / "parts", resume=True, **planted)
    assert first == whole[:45]
    assert rest == whole[45:]
    assert any((tmp_path / "parts" / "state" / "esper").rglob("*.safetensors"))


@pytest.mark.slow
def test_a_rollback_within_the_recipe_puts_everything_back(recipe: ModuleType, tmp_path: Path) -> None:
    example = torch.zeros(1, 2)
    stock(tmp_path, plan(recipe.make_model(), example))
    undo = Undo(12, 20)
    losses = recipe.train(40, tmp_path, controller=Silent(), watch=undo)
    assert undo.after == undo.before
    assert len(losses) == 40
    assert [event.kind.value for event in undo.events] == ["grafted", "rolled_back"]


def test_a_state_without_a_run_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(ConfigError, match="ESP-2466"):
        recipe.train(60, tmp_path, resume=True)
