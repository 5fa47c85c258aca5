"""A user's mistake gets what failed, why, and what to do; nothing is started and nothing is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, TensorDataset, WeightedRandomSampler

import esper
from esper.errors import ConfigError
from esper.ir import REGISTRY

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))


def _host() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def _losses(model: nn.Module) -> Tensor:
    outputs: Tensor = model(X)
    return outputs.square().mean(dim=1)


def _wrapped() -> nn.Module:
    return esper.wrap(_host(), example=X)


def _attach(tmp_path: Path, **changes: Any) -> Any:
    model = changes.pop("model", None) or _wrapped()
    optimizer = changes.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"validate": _losses, "every": 4, "steps": 40, "budget": "+100%", "root": tmp_path, **changes}
    return esper.attach(model, optimizer, **arguments)


def _check(error: ConfigError, *words: str) -> None:
    assert error.why or error.todo, "it says neither why nor what to do"
    for word in words:
        assert word in str(error), str(error)


def test_an_unknown_slot_pattern_names_near_matches() -> None:
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(6, 8))
    model.add_module("head", nn.Linear(8, 2))
    with pytest.raises(ConfigError) as caught:
        esper.wrap(model, slots="encodr")
    _check(caught.value, "ESP-2211", "encodr", "Did you mean encoder")
    assert type(model) is nn.Sequential


def test_a_budget_without_a_unit_is_refused_with_the_likely_meaning(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _attach(tmp_path, budget="30")
    _check(caught.value, "ESP-2104", '"30" is not a ratio', 'Did you mean "+30%"?')


def test_losses_that_are_one_scalar_are_refused_at_the_first_boundary(tmp_path: Path) -> None:
    model = _wrapped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with _attach(tmp_path, model=model, optimizer=optimizer, validate=lambda m: _losses(m).mean()) as growth:
        for _ in range(3):
            growth.step()
        with pytest.raises(ConfigError) as caught:
            growth.step()
        _check(caught.value, "ESP-2120", "1-D", 'reduction="none"')


def test_an_empty_loader_is_refused(tmp_path: Path) -> None:
    empty: DataLoader[Any] = DataLoader(TensorDataset(X[:0], X[:0, 0].long()), batch_size=4)
    trainer = esper.Trainer(esper.TrainerConfig(root=str(tmp_path)))
    with pytest.raises(ConfigError) as caught:
        trainer.fit(_host(), empty)
    _check(caught.value, "ESP-2161", "two examples")


def test_a_loader_that_drops_everything_is_refused(tmp_path: Path) -> None:
    loader: DataLoader[Any] = DataLoader(TensorDataset(X, X[:, 0].long()), batch_size=64, drop_last=True)
    trainer = esper.Trainer(esper.TrainerConfig(root=str(tmp_path)))
    with pytest.raises(ConfigError) as caught:
        trainer.fit(_host(), loader)
    _check(caught.value, "ESP-2162", "drop_last")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file, so that even root cannot make a folder there")
    with pytest.raises(ConfigError) as caught:
        _attach(tmp_path, root=taken)
    _check(caught.value, "cannot be written", "root=")


def test_a_read_only_folder_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        _attach(Path("/proc/esper-runs"))
    _check(caught.value, "cannot be written", "root=")


def test_a_second_attach_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    model = _wrapped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = _attach(tmp_path, model=model, optimizer=optimizer)
    with pytest.raises(ConfigError) as caught:
        _attach(tmp_path, model=model, optimizer=optimizer)
    _check(caught.value, "ESP-2102", "growth.close()")
    first.close()
    _attach(tmp_path, model=model, optimizer=optimizer).close()


def test_a_model_that_is_not_wrapped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _attach(tmp_path, model=_host())
    _check(caught.value, "ESP-2101", "esper.wrap(model)")


def test_an_optimizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _attach(tmp_path, optimizer=torch.optim.SGD(_host().parameters(), lr=0.1))
    _check(caught.value, "ESP-2103", "model.parameters()")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"every": 0}, ("ESP-2106",)),
        ({"every": 50, "steps": 40}, ("ESP-2107", "every=50")),
        ({"lead": 0}, ("ESP-2108",)),
        ({"late": "slipp"}, ("ESP-2112", '"slip" or "wait"')),
        ({"on_cull": "drop"}, ("ESP-2112", '"restore" or "continue"')),
        ({"control": "twin"}, ("ESP-2109", "same batches")),
        ({"state": [object()]}, ("ESP-2114", "rollback")),
        ({"controller": "platau"}, ("ESP-2131", 'did you mean "plateau"?')),
        ({"probe": "loss"}, ("ESP-2111",)),
        ({"signal": "botleneck"}, ("ESP-2129", 'did you mean "bottleneck"?')),
        ({"validate": 3}, ("ESP-2122", "one per held-out example")),
        ({"scheduler": 3}, ("ESP-2115",)),
        ({"state": torch.optim.SGD(_host().parameters(), lr=0.1)}, ("ESP-2113", "state=(scaler,)")),
        ({"state": [torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2))]}, ("ESP-2117", "no copy")),
        ({"newborn_rate": 2.0}, ("ESP-2126", "esper.NewbornRate")),
        ({"budget": "4x"}, ("ESP-2104", 'Did you mean "x4"?')),
        ({"controller": object()}, ("ESP-2132", "decide(packet)")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_setting_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        _attach(tmp_path, **changes)
    _check(caught.value, *words)
    assert not list(tmp_path.iterdir()), "something was started all the same"


def test_a_schedule_that_was_forgotten_is_missed_at_once(tmp_path: Path) -> None:
    model = _wrapped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n)
    with pytest.raises(ConfigError) as caught:
        _attach(tmp_path, model=model, optimizer=optimizer)
    _check(caught.value, "ESP-2116", "scheduler=")


def test_a_blueprint_with_a_mistake_is_left_out_by_name_and_stops_nobody(tmp_path: Path) -> None:
    @esper.blueprint("with_a_typo")
    def with_a_typo(g: Any, site: Any) -> Any:
        return g.pointwize(g.input)

    try:
        left_out = esper.plan(_host(), X).refusals["0/with_a_typo"]
        assert "pointwize" in left_out
        _attach(tmp_path).close()
    finally:
        del REGISTRY._entries["with_a_typo"]


def test_a_loss_that_is_no_scalar_is_refused(tmp_path: Path) -> None:
    with _attach(tmp_path) as growth, pytest.raises(ConfigError) as caught:
        growth.step(torch.ones(3))
    _check(caught.value, "ESP-2123", "scalar")


def test_a_loader_with_an_order_of_its_own_is_refused(tmp_path: Path) -> None:
    data = TensorDataset(X, X[:, 0].long())
    sampler = BatchSampler(WeightedRandomSampler([1.0] * len(X), len(X)), 4, drop_last=False)
    loaders: tuple[DataLoader[Any], ...] = (
        DataLoader(data, batch_sampler=sampler),
        DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * len(X), len(X))),
    )
    for loader in loaders:
        with pytest.raises(ConfigError) as caught:
            esper.Trainer(esper.TrainerConfig(root=str(tmp_path))).fit(_host(), loader)
        _check(caught.value, "ESP-2164", "Sampler of its own", "shuffle=True")
