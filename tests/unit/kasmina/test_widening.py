"""Grafts that read what enters a module: where they are offered, what they compute, and how they become wider layers."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from esper.errors import ConfigError
from esper.ir import Layout, Reads
from esper.kasmina import Slot, fold, join, placement_of, plan, wrap
from esper.kasmina.folding.fold import difference
from tests.laws.support import graft, kernel_for
from tests.unit.kasmina.folding import stir

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def layers(entering: int, hidden: int, leaving: int, activation: str, *, biases: tuple[bool, bool]) -> nn.Sequential:
    reading, writing = nn.Linear(entering, hidden, bias=biases[0]), nn.Linear(hidden, leaving, bias=biases[1])
    return nn.Sequential(reading, ACTIVATIONS[activation](), writing)


def host_of(inner: nn.Module, leaving: int) -> nn.Sequential:
    return nn.Sequential(inner, nn.Linear(leaving, 3))


def host(activation: str = "relu", *, last_bias: bool = True) -> tuple[nn.Sequential, Tensor]:
    """Return a model whose slot is two linear layers from 5 over 6 to 4 channels, and an input."""
    torch.manual_seed(0)
    model = host_of(layers(5, 6, 4, activation, biases=(True, last_bias)), 4)
    x = torch.randn(7, 5)
    return wrap(model, "0", example=x), x  # type: ignore[return-value]


def widened(model: nn.Module, *, seed_idx: int = 0, alpha: float = 1.0) -> None:
    kernel = graft(model, "0", "wider_mlp", seed_idx=seed_idx, seed=seed_idx).kernel
    stir(kernel)
    model.get_submodule(f"0.esper_grafts.{seed_idx}").alpha.fill_(alpha)


def refused(model: nn.Module, x: Tensor, slot: str | Slot, blueprint: str) -> str:
    name = slot if isinstance(slot, str) else slot.name
    return plan(model, x, slot).refusals[f"{name}/{blueprint}"]


# -- what it computes ----------------------------------------------------------------------------------------------------


def test_it_adds_a_function_of_what_entered_to_what_leaves() -> None:
    model, x = host()
    h = model[0](x)
    widened(model, alpha=0.5)
    weights = dict(model.get_submodule("0.esper_grafts.0.kernel").named_parameters())
    hidden = torch.relu(x @ weights["linear1.weight"].T + weights["linear1.bias"])
    added = hidden @ weights["linear2.weight"].T + weights["linear2.bias"]
    torch.testing.assert_close(model[0](x), h + 0.5 * added)


def test_the_nonlinearity_is_that_of_the_host_where_it_has_one() -> None:
    for name in ACTIVATIONS:
        model, _ = host(name)
        assert placement_of(model).place("0").activation == name
        assert name in graft(model, "0", "wider_mlp").kernel.ir.canonical().decode()
    mixed = host_of(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh()), 6)
    wrap(mixed, "0", example=torch.randn(2, 5))
    assert placement_of(mixed).place("0").activation is None
    assert "gelu" in graft(mixed, "0", "wider_mlp").kernel.ir.canonical().decode()


def test_a_convolution_that_changes_its_channels_is_widened() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 5, 6)
    wrap(model, "0", example=x)
    before = model(x)
    newborn = graft(model, "0", "wider_conv")
    assert (newborn.kernel.ir.channels, newborn.kernel.ir.out_channels) == (3, 8)
    assert torch.equal(model(x), before)
    stir(newborn.kernel)
    assert not torch.allclose(model(x), before)


# -- where it is not offered ---------------------------------------------------------------------------------------------


class Keyword(nn.Module):
    """Calls its inner layer by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        out: Tensor = self.head(self.inner(input=x).relu())
        return out


class AddsInPlace(nn.Module):
    """Adds to what entered its inner module, in place: that module itself keeps nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(5, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        x += self.inner(x)
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize(
    ("model", "x", "slot", "blueprint"),
    [
        (host_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), 4), torch.randn(2, 3, 4), "0", "wider_mlp"),
        (nn.Sequential(nn.Conv1d(2, 4, 3, stride=2), nn.Conv1d(4, 3, 1)), torch.randn(2, 2, 9), "0", "wider_conv"),
        (host_of(nn.Sequential(nn.Embedding(9, 4)), 4), torch.zeros(2, 5, dtype=torch.long), "0", "wider_mlp"),
        (host_of(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 4)), 4), torch.randn(2, 5), "0", "wider_mlp"),
        (Keyword(), torch.randn(2, 5), "inner", "wider_mlp"),
        (AddsInPlace(), torch.randn(2, 5), "inner", "wider_mlp"),
    ],
    ids=[
        "flattens",
        "strides",
        "embeds",
        "changes its input in place",
        "is called by keyword",
        "has its input changed in place",
    ],
)
def test_it_is_refused_where_nothing_can_be_read_beside_the_module(
    model: nn.Module, x: Tensor, slot: str, blueprint: str
) -> None:
    assert "it reads what enters the module" in refused(model, x, slot, blueprint)


def test_a_kernel_of_other_widths_is_refused_with_both() -> None:
    model, _ = host()
    other = wrap(host_of(layers(6, 6, 4, "relu", biases=(True, True)), 4), "0", example=torch.randn(2, 6))
    data, kernel_id = kernel_for(other, "0", "wider_mlp")
    with pytest.raises(ConfigError, match=r"made to read 6 channels and to add to 4 .*; 5 enter and 4 leave") as caught:
        join(model, "0", 0, data, kernel_id=kernel_id)
    assert caught.value.code == "ESP-2220"
    narrow = wrap(host_of(layers(5, 6, 5, "relu", biases=(True, True)), 5), "0", example=torch.randn(2, 5))
    data, kernel_id = kernel_for(narrow, "0", "wider_mlp")
    with pytest.raises(ConfigError, match="add to 5"):
        join(model, "0", 0, data, kernel_id=kernel_id)


def test_a_module_that_is_called_otherwise_than_its_slot_was_found_says_so() -> None:
    model, x = host()
    graft(model, "0", "wider_mlp")
    with pytest.raises(ConfigError, match="without a tensor as its first argument") as caught:
        model[0](input=x)
    assert caught.value.code == "ESP-2225"


# -- folding -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    biases=st.tuples(st.booleans(), st.booleans()),
    alphas=st.lists(st.sampled_from((1.0, 0.7, -0.3)), min_size=1, max_size=3),
)
def test_beside_two_layers_it_becomes_hidden_units_of_theirs(
    widths: tuple[int, int, int], activation: str, biases: tuple[bool, bool], alphas: list[float]
) -> None:
    torch.manual_seed(1)
    entering, hidden, leaving = widths
    model = host_of(layers(entering, hidden, leaving, activation, biases=biases), leaving)
    x = torch.randn(9, entering)
    wrap(model, "0", example=x)
    for seed_idx, alpha in enumerate(alphas):
        widened(model, seed_idx=seed_idx, alpha=alpha)
    alone = fold(model, x)
    assert type(alone[0]) is nn.Sequential  # type: ignore[index]
    units = hidden + 64 * len(alphas)
    assert {name: tuple(t.shape) for name, t in alone.state_dict().items() if name.endswith("weight")} == {
        "0.0.weight": (units, entering),
        "0.2.weight": (leaving, units),
        "1.weight": (3, leaving),
    }
    assert difference(model(x), alone(x)) <= 1e-6
    assert not [module for module in alone.modules() if "esper" in type(module).__module__]
    alone(x).sum().backward()
    assert all(parameter.grad is not None for parameter in alone.parameters())


def test_beside_anything_else_it_stays_a_branch() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 5)
    tied = host_of(layers(5, 5, 5, "relu", biases=(True, True)), 5)
    tied[0][2].weight = tied[0][0].weight  # type: ignore[index, union-attr]
    hosts = {
        "a layer": host_of(nn.Linear(5, 4), 4),
        "another nonlinearity": host_of(nn.Sequential(nn.Linear(5, 6), nn.SELU(), nn.Linear(6, 4)), 4),
        "a third part": host_of(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 4)), 4),
        "tied weights": tied,
    }
    for why, model in hosts.items():
        wrap(model, "0", example=x)
        widened(model, alpha=0.7)
        alone = fold(model, x)
        assert isinstance(alone.get_submodule("0"), GraphModule), why
        assert difference(model.eval()(x), alone.eval()(x)) <= 1e-6, why


def test_behind_a_graft_that_reads_what_leaves_it_stays_a_branch_which_that_does_not_see() -> None:
    model, x = host()
    widened(model, seed_idx=0)
    stir(graft(model, "0", "mlp_adapter", seed_idx=1).kernel)
    widened(model, seed_idx=2)
    alone = fold(model, x)
    assert difference(model(x), alone(x)) <= 1e-6
    names = {name.split(".")[2] for name, _ in alone.named_parameters() if ".grafts." in name}
    assert names == {"1", "2"}
    assert alone.get_submodule("0.host.0").weight.shape == (70, 5)  # type: ignore[union-attr]


def test_what_is_drawn_for_the_input_says_so_and_what_is_not_keeps_its_name() -> None:
    model, _ = host()
    wide, plain = (graft(model, "0", name, seed_idx=i).kernel.ir for i, name in enumerate(("wider_mlp", "mlp_adapter")))
    assert (wide.reads, wide.to_json()["reads"]) == (Reads.INPUT, "input")
    assert "reads" not in plain.to_json()
    assert placement_of(model).place("0").site().layout is Layout.FEATURES
