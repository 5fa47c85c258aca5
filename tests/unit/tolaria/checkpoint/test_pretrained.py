"""A saved model comes back with the same outputs to the bit, and grows on."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import esper
from esper.errors import ConfigError, ContractError
from esper.kasmina import Slot, placement_of, topology
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import kernel_for
from tests.laws.training import COMBINATIONS, Training, equal, reseed, stock


def grown(host: ZooHost, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a wrapped host with a graft in its first slot that does something."""
    model = host.model(seed=3).to(dtype)
    example = host.batch().x
    esper.wrap(model, host.slots, example=example.to(dtype) if example.is_floating_point() else example)
    from esper.kasmina import join

    slot = next(iter(placement_of(model).slots))
    data, kernel_id = kernel_for(model, slot, "mlp_adapter")
    newborn = join(model, slot, 0, data, kernel_id=kernel_id, blueprint="mlp_adapter")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in newborn.parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return model


def outputs(model: nn.Module, host: ZooHost, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = host.batch(seed=8).x
    with torch.no_grad():
        result: torch.Tensor = model.eval()(x.to(dtype) if x.is_floating_point() else x)
    return result


@pytest.mark.parametrize("name", ZOO)
def test_a_grown_model_comes_back_with_the_same_outputs_to_the_bit(name: str, tmp_path: Path) -> None:
    host = ZOO[name]
    model = grown(host)
    esper.save_pretrained(model, tmp_path / "model")
    loaded = esper.from_pretrained(tmp_path / "model", base=lambda: host.model(seed=4))
    assert topology(loaded) == topology(model)
    assert equal(dict(loaded.state_dict()), dict(model.state_dict()))
    assert torch.equal(outputs(loaded, host), outputs(model, host))
    assert list(placement_of(loaded).slots) == list(placement_of(model).slots)
    assert placement_of(loaded).ready


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_of_the_saved_model_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    host = ZOO["resnet"]
    model = grown(host, dtype=dtype)
    esper.save_pretrained(model, tmp_path / "model")
    loaded = esper.from_pretrained(tmp_path / "model", base=host.model(seed=4))
    assert torch.equal(outputs(loaded, host, dtype), outputs(model, host, dtype))


def test_strides_are_kept(tmp_path: Path) -> None:
    host = ZOO["channels_last"]
    model = grown(host)
    esper.save_pretrained(model, tmp_path / "model")
    loaded = esper.from_pretrained(
        tmp_path / "model", base=lambda: host.model(seed=4).to(memory_format=torch.contiguous_format)
    )
    strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
    assert {name: tensor.stride() for name, tensor in loaded.state_dict().items()} == strides
    plain = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


class Tied(nn.Module):
    """An embedding that is the output layer too, where it is asked for."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 7, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.mix(self.embedding(ids)))
        return result


def test_ties_are_stored_once_and_made_again(tmp_path: Path) -> None:
    ids = torch.arange(6).reshape(2, 3)
    path = esper.save_pretrained(esper.wrap(Tied(True), example=ids), tmp_path / "model")
    assert json.loads((path / "growth.json").read_text())["aliases"] == {"head.weight": "embedding.weight"}
    assert "head.weight" not in load_file(path / "model.safetensors")
    for tied in (True, False):
        loaded = esper.from_pretrained(path, base=Tied(tied))
        assert loaded.head.weight is loaded.embedding.weight


def test_a_host_that_ties_what_was_not_tied_is_refused(tmp_path: Path) -> None:
    path = esper.save_pretrained(esper.wrap(Tied(False), example=torch.arange(6).reshape(2, 3)), tmp_path / "model")
    with pytest.raises(ConfigError, match="tied here"):
        esper.from_pretrained(path, base=Tied(True))


def test_a_model_of_a_run_is_saved_and_may_be_attached_again(tmp_path: Path) -> None:
    first = Training(ZOO["dropout"], COMBINATIONS[1])
    root = stock(tmp_path)
    with first.attach(root) as growth:
        reseed(1)
        first.train(3, growth)
        growth.graft(first.slots[0], "gated_mlp")
        first.train(3, growth)
        path = esper.save_pretrained(first.model, tmp_path / "model")
        wanted = outputs(first.model, first.host)
    second = Training(ZOO["dropout"], COMBINATIONS[1], seed=1)
    second.model = esper.from_pretrained(path, base=ZOO["dropout"].model(seed=9))
    second.optimizer = torch.optim.AdamW(second.model.parameters(), lr=3e-3)
    second.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(second.optimizer, T_max=60)
    assert torch.equal(outputs(second.model, second.host), wanted)
    with second.attach(root) as growth:
        second.train(5, growth)
        growth.graft(second.slots[1], "gated_mlp")
        second.train(2, growth)
    assert len(topology(second.model)) == 2


@pytest.mark.parametrize("slots", ["auto", "0", [Slot("0", layout="features"), "2"], nn.Linear])
def test_what_wrap_was_asked_for_is_kept_though_shapes_are_not_known(slots: object, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    model = esper.wrap(make(), slots)
    loaded = esper.from_pretrained(esper.save_pretrained(model, tmp_path / "model"), base=make)
    for each in (model, loaded):
        each(torch.rand(2, 4))
    assert list(placement_of(loaded).slots) == list(placement_of(model).slots) != []


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4)), "2.weight is missing here|2.bias is missing"),
        (lambda: nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), "1.bias was not saved"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4)), r"shape \(5,\), saved is \(4,\)"),
    ],
)
def test_another_host_is_refused_and_left_as_it_was(base: object, told: str, tmp_path: Path) -> None:
    model = esper.wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), example=torch.rand(2, 4))
    path = esper.save_pretrained(model, tmp_path / "model")
    host = base()  # type: ignore[operator]
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    with pytest.raises(ConfigError, match=told):
        esper.from_pretrained(path, base=host)
    assert type(host) is nn.Sequential
    assert equal(dict(host.state_dict()), before)


def test_a_folder_of_somebody_else_is_not_touched_and_an_own_one_is_replaced(tmp_path: Path) -> None:
    model = esper.wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), example=torch.rand(2, 4))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="ESP-2190"):
        esper.save_pretrained(model, tmp_path / "foreign")
    path = esper.save_pretrained(model, tmp_path / "own")
    with torch.no_grad():
        model[0].weight.zero_()
    esper.save_pretrained(model, path)
    assert not esper.from_pretrained(path, base=lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))[
        0
    ].weight.any()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["foreign", "own"]


@pytest.mark.parametrize("name", ["config.json", "growth.json", "model.safetensors"])
def test_a_changed_byte_in_any_file_is_found(name: str, tmp_path: Path) -> None:
    path = esper.save_pretrained(grown(ZOO["mlp"]), tmp_path / "model")
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (path / name).write_bytes(data)
    with pytest.raises(ContractError, match=name.replace(".", r"\.")):
        esper.from_pretrained(path, base=ZOO["mlp"].model)
