"""Parameters come and go; what stays keeps every moment."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from esper.errors import ConfigError
from esper.services.tolaria.optimizer import add_newborn, host_group_of, name_parameters, remove_parameters
from esper.services.tolaria.optimizer_state import capture_optimizer, restore_optimizer
from esper.services.tolaria.schedules import capture_schedule, regrouped, restore_schedule

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
}


def _trained(make: str) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = OPTIMIZERS[make]([{"params": model[0].parameters(), "lr": 0.03}, {"params": model[2].parameters()}])
    _steps(model, optimizer, 3)
    return model, optimizer


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=generator)).square().sum().backward()
        optimizer.step()


def _equal(left: object, right: object) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[key], right[key]) for key in left)
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return torch.equal(left, right)
    return left == right


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_newborn_gets_a_group_of_its_own_with_the_options_of_its_host(make: str) -> None:
    model, optimizer = _trained(make)
    newborn = nn.Linear(8, 8)
    like = host_group_of(optimizer, model[0].parameters())
    add_newborn(optimizer, dict(newborn.named_parameters()), like=like)
    assert optimizer.param_groups[2]["lr"] == 0.03
    assert optimizer.param_groups[2]["params"] == list(newborn.parameters())


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_adding_and_removing_leaves_every_surviving_moment_as_it_was(make: str) -> None:
    model, optimizer = _trained(make)
    named = name_parameters(model, optimizer)
    before = capture_optimizer(optimizer, named)
    newborn = nn.Linear(8, 8)
    add_newborn(optimizer, dict(newborn.named_parameters()), like=0)
    remove_parameters(optimizer, newborn.parameters())
    after = capture_optimizer(optimizer, named)
    assert after.groups == before.groups
    assert _equal(after.moments, before.moments)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_restored_optimizer_goes_on_exactly_as_the_captured_one_would_have(make: str) -> None:
    model, optimizer = _trained(make)
    named = name_parameters(model, optimizer)
    held = capture_optimizer(optimizer, named)
    values = {name: parameter.detach().clone() for name, parameter in named.items()}
    _steps(model, optimizer, 4)
    expected = {name: parameter.detach().clone() for name, parameter in named.items()}
    _steps(model, optimizer, 2)
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(values[name])
    restore_optimizer(optimizer, held, named)
    _steps(model, optimizer, 4)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in named.items())


def test_same_sized_groups_are_told_apart_by_name() -> None:
    model = nn.ModuleDict({"left": nn.Linear(3, 3), "right": nn.Linear(3, 3)})
    one = torch.optim.Adam([{"params": model["left"].parameters()}, {"params": model["right"].parameters()}])
    (model["left"](torch.ones(1, 3)).sum() + 5 * model["right"](torch.ones(1, 3)).sum()).backward()
    one.step()
    held = capture_optimizer(one, name_parameters(model, one))
    other = torch.optim.Adam([{"params": model["right"].parameters()}, {"params": model["left"].parameters()}])
    restore_optimizer(other, held, name_parameters(model, other))
    assert torch.equal(other.state[model["left"].weight]["exp_avg"], one.state[model["left"].weight]["exp_avg"])


def test_adding_what_the_optimizer_already_holds_is_refused() -> None:
    model, optimizer = _trained("sgd")
    with pytest.raises(ConfigError, match="holds them already"):
        add_newborn(optimizer, dict(model[0].named_parameters()), like=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, [lambda n: 0.9**n, lambda n: 0.5**n]),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10),
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, total_iters=3),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=10),
            ],
            milestones=[3],
        ),
    ],
    ids=["lambda", "cosine", "step", "sequential"],
)
def test_a_schedule_gives_the_newborn_the_rate_of_the_group_it_follows(
    make: Callable[[torch.optim.Optimizer], Any],
) -> None:
    _, optimizer = _trained("sgd")
    schedule = make(optimizer)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    newborn = nn.Linear(8, 8)
    with regrouped(schedule, optimizer):
        add_newborn(optimizer, dict(newborn.named_parameters()), like=1)
    for _ in range(5):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[2]["lr"] == pytest.approx(optimizer.param_groups[1]["lr"], rel=1e-12)
    with regrouped(schedule, optimizer):
        remove_parameters(optimizer, newborn.parameters())
    optimizer.step()
    schedule.step()
    assert len(optimizer.param_groups) == 2


def test_a_schedule_is_put_back_to_where_it_was_with_its_groups() -> None:
    model, optimizer = _trained("sgd")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n)
    named = name_parameters(model, optimizer)
    held, state = capture_optimizer(optimizer, named), capture_schedule(schedule)
    with regrouped(schedule, optimizer):
        add_newborn(optimizer, dict(nn.Linear(8, 8).named_parameters()), like=0)
    optimizer.step()
    schedule.step()
    with regrouped(schedule, optimizer):
        restore_optimizer(optimizer, held, named)
    restore_schedule(schedule, state)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, pytest.approx(0.1)]
    assert schedule.last_epoch == 0
