"""The examples of uses, run for real with few steps: what they promise to grow, keep, freeze and prune is so."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.kasmina import topology

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
PAGES = {
    "size-unknown": "size_unknown",
    "plateau": "plateaued_network",
    "data-change": "new_classes",
    "frozen-host": "frozen_host",
}
"""The example of each page."""


def example(name: str) -> ModuleType:
    """Import an example by the name of its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grafts(model: nn.Module) -> dict[str, str]:
    """Return what has grown, by slot."""
    return {entry.slot: entry.blueprint for entry in topology(model)}


def host(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that were there before anything grew."""
    return {name: value for name, value in model.state_dict().items() if "esper_grafts" not in name}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_the_example_that_is_run_here(page: str) -> None:
    text = (ROOT / "docs" / "uses" / f"{page}.md").read_text(encoding="utf-8")
    assert f"```python\n{(EXAMPLES / f'{PAGES[page]}.py').read_text(encoding='utf-8')}```" in text


def test_one_run_grows_in_place_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = example("size_unknown").main(steps=200, root=str(tmp_path))
    told = capsys.readouterr().out
    assert "2 slots" in told
    grown = re.findall(r"grafted (\w+) at (\w+)", told)
    left = re.findall(r"culled (\w+) at (\w+)", told)
    assert grown
    assert sorted((blueprint, slot) for slot, blueprint in grafts(model).items()) == sorted(set(grown) - set(left))


def test_a_trained_network_is_loaded_and_grows_at_every_slot(tmp_path: Path) -> None:
    kept = tmp_path / "small.safetensors"
    model = example("plateaued_network").main(steps=40, root=str(tmp_path / "runs"), checkpoint=str(kept))
    assert grafts(model) == {"1": "gated_conv", "3": "gated_conv"}
    trained = load_file(kept)
    assert trained.keys() == host(model).keys()
    assert not any(torch.equal(trained[name], value) for name, value in host(model).items() if "weight" in name)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_after_a_change_the_host_learns_on_unless_it_is_frozen(
    frozen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("new_classes")
    begun: list[dict[str, Tensor]] = []
    train = module.train

    def noted(model: nn.Module, *args: object, **options: object) -> None:
        begun.append({name: value.clone() for name, value in host(model).items()})
        train(model, *args, **options)

    monkeypatch.setattr(module, "train", noted)
    model = module.main(steps=40, root=str(tmp_path), replay=not frozen, frozen=frozen)
    assert grafts(model) == {"1": "gated_conv", "3": "gated_conv"}
    same = {torch.equal(begun[1][name], value) for name, value in host(model).items()}
    assert same == {frozen}


@pytest.mark.slow
def test_adapters_on_a_frozen_host_are_pruned_to_their_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = example("frozen_host").main(steps=40, root=str(tmp_path))
    told = capsys.readouterr().out
    assert told.count("grafted adapter at") == 6
    assert told.count("lost its adapter") == 2
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if "esper_grafts" not in name} == set()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4 * 480
    assert len(grafts(model)) == 4
