"""Surgery on every optimizer, held against one of the same kind that never saw surgery."""

import copy
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.errors import ConfigError
from esper.services.tolaria import attachment
from esper.services.tolaria.optimizer import add_newborn, dead_parameters, host_group_of, remove_parameters
from esper.services.tolaria.optimizer_state import LIKE, OptimizerState, capture_optimizer, restore_optimizer
from tests.laws.training import equal
from tests.unit.tolaria.kinds import OPTIMIZERS, Watched

HOST = {"a.weight": (3, 4), "a.bias": (3,), "b.weight": (2, 3), "b.bias": (2,)}
NEWBORN = {"weight": (4, 4), "bias": (4,)}
FIRST = ("a.weight", "a.bias")
DTYPES = (torch.float32, torch.bfloat16)


def drawn(name: str, moment: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor that depends on its name and a moment alone."""
    seed = zlib.crc32(f"{name} {moment}".encode())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def shape_of(name: str) -> tuple[int, ...]:
    return HOST[name] if name in HOST else NEWBORN[name.rpartition(".")[2]]


@dataclass
class Held:
    """A saved moment."""

    values: dict[str, Tensor]
    state: OptimizerState
    lives: dict[str, list[int]]


@dataclass
class Patient:
    """A host and newborns under one optimizer; its gradients depend on names and moments alone."""

    kind: str
    dtype: torch.dtype
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    lives: dict[str, list[int]] = field(default_factory=dict)
    moment: int = 0

    def __post_init__(self) -> None:
        for name in HOST:
            self._born(name)
        first = [self.parameters[name] for name in FIRST]
        second = [self.parameters[name] for name in HOST if name not in FIRST]
        self.optimizer = OPTIMIZERS[self.kind]([{"params": first, "lr": 0.004}, {"params": second}])

    def _born(self, name: str) -> nn.Parameter:
        self.parameters[name] = nn.Parameter(drawn(name, -1, shape_of(name), self.dtype))
        self.lives[name] = []
        return self.parameters[name]

    @property
    def newborns(self) -> set[str]:
        return {name[0] for name in self.parameters if name not in HOST}

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.moment += 1
            for name, parameter in self.parameters.items():
                parameter.grad = drawn(name, self.moment, shape_of(name), self.dtype)
                self.lives[name].append(self.moment)
            self.optimizer.step()

    def add(self, key: str, like: int) -> None:
        if key not in self.newborns:
            names = [f"{key}{like}.{part}" for part in NEWBORN]
            add_newborn(self.optimizer, {name: self._born(name) for name in names}, like=like)

    def remove(self, key: str) -> None:
        names = [name for name in self.parameters if name.startswith(key)]
        remove_parameters(self.optimizer, [self.parameters[name] for name in names])
        for name in names:
            del self.parameters[name], self.lives[name]

    def save(self) -> Held:
        values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        return Held(values, capture_optimizer(self.optimizer, self.parameters), copy.deepcopy(self.lives))

    def restore(self, held: Held) -> None:
        for name in [name for name in self.parameters if name not in held.values]:
            del self.parameters[name]
        with torch.no_grad():
            for name, value in held.values.items():
                self.parameters.setdefault(name, nn.Parameter(torch.zeros_like(value))).copy_(value)
        self.lives = copy.deepcopy(held.lives)
        restore_optimizer(self.optimizer, held.state, self.parameters)

    def check(self) -> None:
        """Hold each parameter and its moments against an optimizer of its own that never saw surgery."""
        for name, life in self.lives.items():
            alone = nn.Parameter(drawn(name, -1, shape_of(name), self.dtype))
            first = name in FIRST or name.partition(".")[0].endswith("0")
            oracle = OPTIMIZERS[self.kind]([{"params": [alone], **({"lr": 0.004} if first else {})}])
            for moment in life:
                alone.grad = drawn(name, moment, shape_of(name), self.dtype)
                oracle.step()
            assert torch.equal(self.parameters[name], alone), name
            found = dict(self.optimizer.state.get(self.parameters[name], {}))
            assert equal(found, dict(oracle.state.get(alone, {}))), name
        extras = {key for key in self.optimizer.state if isinstance(key, str)}
        assert extras == ({"rounds", "trace"} if self.kind == "own" else set())
        if extras:
            assert self.optimizer.state["rounds"] == len(self.lives["a.weight"])  # type: ignore[index]


ACTS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("xyz"), st.integers(0, 1)),
    st.tuples(st.just("remove"), st.sampled_from("xyz")),
    st.tuples(st.just("save")),
    st.tuples(st.just("restore")),
    st.tuples(st.just("train"), st.integers(1, 3)),
)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@settings(max_examples=8)
@given(st.lists(ACTS, min_size=4, max_size=10), st.sampled_from(DTYPES))
def test_after_any_surgery_every_parameter_is_where_an_optimizer_of_its_own_would_have_it(
    kind: str, acts: list[tuple[Any, ...]], dtype: torch.dtype
) -> None:
    if kind == "sgd-fused":
        dtype = (
            torch.float32
        )  # torch 2.13 stores other momentum from run to run in bfloat16 on the CPU, without Esper too
    patient = Patient(kind, dtype)
    patient.train(2)
    held = patient.save()
    for name, *arguments in acts:
        if name == "save":
            held = patient.save()
        elif name == "restore":
            patient.restore(held)
        else:
            getattr(patient, name)(*arguments)
    patient.train(1)
    patient.check()


def test_the_check_sees_a_moment_that_went_astray() -> None:
    patient = Patient("adamw", torch.float32)
    patient.train(2)
    patient.add("x", 0)
    patient.train(1)
    patient.check()
    patient.optimizer.state[patient.parameters["a.weight"]]["exp_avg_sq"][0, 0] += 1e-6
    with pytest.raises(AssertionError, match=r"a\.weight"):
        patient.check()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_groups_that_stay_are_the_same_objects_with_the_same_tensors(kind: str) -> None:
    patient = Patient(kind, torch.float32)
    groups = list(patient.optimizer.param_groups)
    rates = [group["lr"] for group in groups]
    held = patient.save()
    patient.add("x", 1)
    patient.train(1)
    patient.restore(held)
    assert all(now is before for now, before in zip(patient.optimizer.param_groups, groups, strict=True))
    assert all(group["lr"] is rate for group, rate in zip(groups, rates, strict=True))


def test_adagrad_gives_a_newborn_the_state_that_its_constructor_would() -> None:
    for kind in ("adagrad", "adagrad-fused"):
        patient = Patient(kind, torch.float32)
        patient.add("x", 0)
        fresh = nn.Parameter(drawn("x0.weight", -1, (4, 4), torch.float32))
        oracle = OPTIMIZERS[kind]([fresh])
        assert equal(patient.optimizer.state[patient.parameters["x0.weight"]], oracle.state[fresh])


@dataclass
class Named:
    """A host under an optimizer of named parameters and named groups."""

    host: nn.Sequential = field(default_factory=lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))

    def __post_init__(self) -> None:
        groups = [
            {"params": list(self.host[0].named_parameters("0")), "name": "body"},
            {"params": list(self.host[1].named_parameters("1")), "name": "head", "lr": 0.5},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def test_names_of_parameters_and_groups_follow_and_stay_unique() -> None:
    named = Named()
    before = capture_optimizer(named.optimizer, dict(named.host.named_parameters()))
    newborn = dict(nn.Linear(2, 2).named_parameters("1.esper_grafts.0.kernel"))
    add_newborn(named.optimizer, newborn, like=1)
    body, head, grown = named.optimizer.param_groups
    assert (body["param_names"], head["param_names"]) == (["0.weight", "0.bias"], ["1.weight", "1.bias"])
    assert grown["param_names"] == list(newborn)
    assert (grown["name"], grown["lr"]) == ("head/1.esper_grafts.0", 0.5)
    remove_parameters(named.optimizer, [newborn["1.esper_grafts.0.kernel.weight"]])
    assert grown["param_names"] == ["1.esper_grafts.0.kernel.bias"]
    restore_optimizer(named.optimizer, before, dict(named.host.named_parameters()))
    assert [group["param_names"] for group in named.optimizer.param_groups] == [
        body["param_names"],
        head["param_names"],
    ]


def test_a_newborn_follows_the_group_of_the_bulk_of_its_slot() -> None:
    host = nn.Linear(5, 4)
    optimizer = torch.optim.AdamW([{"params": [host.bias], "weight_decay": 0.0}, {"params": [host.weight]}])
    assert host_group_of(optimizer, [host.bias, host.weight]) == 1
    assert host_group_of(optimizer, nn.ReLU().parameters()) == 0


def test_a_newborn_still_follows_its_host_when_a_group_between_them_goes() -> None:
    patient = Patient("adamw", torch.float32)
    patient.add("x", 0)
    late = nn.Parameter(torch.ones(2))
    patient.optimizer.add_param_group({"params": [late], "lr": 0.77})
    add_newborn(patient.optimizer, {"y.weight": nn.Parameter(torch.ones(3))}, like=3)
    patient.remove("x")
    assert [group["lr"] for group in patient.optimizer.param_groups] == [0.004, 0.01, 0.77, 0.77]
    assert patient.optimizer.param_groups[3][LIKE] == 2


def test_a_blueprint_without_parameters_or_with_frozen_ones_adds_no_group() -> None:
    patient = Patient("adamw", torch.float32)
    add_newborn(patient.optimizer, {}, like=0)
    add_newborn(patient.optimizer, {"z.weight": nn.Parameter(torch.ones(2), requires_grad=False)}, like=0)
    assert len(patient.optimizer.param_groups) == 2


def test_frozen_parameters_of_the_host_keep_their_place() -> None:
    patient = Patient("adamw", torch.float32)
    patient.train(2)
    patient.parameters["b.weight"].requires_grad_(False)
    held = patient.save()
    patient.add("x", 1)
    patient.restore(held)
    patient.check()
    assert len(patient.optimizer.param_groups[1]["params"]) == 2


def test_moments_keep_the_memory_format_of_their_parameters() -> None:
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(conv.parameters())
    conv(torch.ones(1, 4, 5, 5).to(memory_format=torch.channels_last)).sum().backward()
    optimizer.step()
    named = dict(conv.named_parameters())
    held = capture_optimizer(optimizer, named)
    from_file = {k: {n: v.contiguous() for n, v in m.items()} for k, m in held.moments.items()}
    for moments in (held.moments, from_file):
        restore_optimizer(optimizer, OptimizerState(held.groups, moments), named)
        assert optimizer.state[conv.weight]["exp_avg"].stride() == conv.weight.stride()
        assert equal(optimizer.state[conv.weight], held.moments["weight"])


def test_hooks_of_the_user_run_on_after_surgery() -> None:
    patient = Patient("watched", torch.float32)
    held = patient.save()
    patient.add("x", 0)
    patient.restore(held)
    patient.train(1)
    assert isinstance(patient.optimizer, Watched)
    assert patient.optimizer.calls == ["before", "after"]


def test_what_a_graft_that_is_gone_left_behind_is_found() -> None:
    patient = Patient("adamw", torch.float32)
    host = nn.Module()
    for name in HOST:
        host.register_parameter(name.replace(".", "_"), patient.parameters[name])
    patient.add("x", 0)
    patient.train(1)
    dead = dead_parameters(patient.optimizer, host)
    assert {id(parameter) for parameter in dead} == {id(patient.parameters[name]) for name in ("x0.weight", "x0.bias")}
    remove_parameters(patient.optimizer, dead)
    assert len(patient.optimizer.param_groups) == 2
    assert len(patient.optimizer.state) == len(HOST)


REFUSED: Mapping[str, Any] = {
    "lbfgs": lambda p: torch.optim.LBFGS(p),
    "sparse": lambda p: torch.optim.SparseAdam(p),
    "muon": lambda p: torch.optim.Muon([parameter for parameter in p if parameter.ndim == 2]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_optimizer_that_cannot_hold_a_newborn_is_refused_with_the_reason(kind: str) -> None:
    import esper

    model = esper.wrap(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    optimizer: Optimizer = REFUSED[kind](list(model.parameters()))
    with pytest.raises(ConfigError) as caught:
        attachment.check_host(model, optimizer)
    assert caught.value.code == "ESP-2128"
    assert caught.value.why
