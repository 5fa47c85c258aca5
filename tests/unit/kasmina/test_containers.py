"""Containers that run their children run no graft twice."""

import pytest
import torch
from torch import Tensor, nn

from esper.kasmina import detach, topology, wrap
from tests.laws.support import graft


class ByItems(nn.ModuleDict):
    """As torchvision's dense blocks do."""

    def forward(self, x: Tensor) -> Tensor:
        for _name, layer in self.items():
            x = layer(x)
        return x


class ByKeys(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        for name in self:
            x = self[name](x)
        return x


class ByValues(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = layer(x)
        return x


class ByList(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


class ByIndex(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        for index in range(len(self)):
            x = self[index](x)
        return x


class ByChildren(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class ByModules(nn.Sequential):
    """Goes past every method, to torch's own dictionary."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._modules.values():
            x = layer(x)
        return x


CONTAINERS = (nn.Sequential, ByItems, ByKeys, ByValues, ByList, ByIndex, ByChildren, ByModules)


def container(cls: type[nn.Module]) -> nn.Module:
    layers = [nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)]
    if issubclass(cls, nn.ModuleDict):
        return cls({f"layer{index}": layer for index, layer in enumerate(layers)})
    return cls(layers) if issubclass(cls, nn.ModuleList) else cls(*layers)


@pytest.mark.parametrize("cls", CONTAINERS)
def test_a_container_that_runs_its_children_runs_no_graft_twice(cls: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(container(cls), nn.Linear(8, 2))
    x = torch.randn(4, 8)
    wrap(model, "0", example=x)
    plain = model[0](x)
    newborn = graft(model, "0", "mlp_adapter")
    assert torch.equal(model[0](x), plain)
    with torch.no_grad():
        for parameter in newborn.parameters.values():
            parameter.add_(0.1)
    calls: list[Tensor] = []
    newborn.kernel.register_forward_hook(lambda _m, _i, out: calls.append(out))
    assert torch.equal(model[0](x), plain + newborn.kernel(plain))
    assert len(calls) == 2
    assert len(model[0]) == 3
    detach(model, "0", 0)
    assert torch.equal(model[0](x), plain)
    assert type(model[0]) is cls


@pytest.mark.parametrize("cls", [nn.Sequential, ByList])
def test_slices_and_deletions_of_a_grafted_container_are_those_of_the_host(cls: type[nn.Module]) -> None:
    model = nn.Sequential(container(cls), nn.Linear(8, 2))
    wrap(model, "0", example=torch.randn(4, 8))
    layers = list(model[0])
    graft(model, "0", "mlp_adapter")
    part = model[0][1:]
    assert type(part) is cls
    assert list(part) == layers[1:]
    assert [name for name, _ in part.named_children()] == [name for name, _ in container(cls)[1:].named_children()]
    assert model[0][-1] is layers[-1]
    del model[0][1]
    assert list(model[0]) == [layers[0], layers[2]]
    assert [entry.slot for entry in topology(model)] == ["0"]
    model[0].append(nn.Tanh())
    assert len(model[0]) == 3
    detach(model, "0", 0)
    assert list(model[0]._modules) == ["0", "1", "2"]
