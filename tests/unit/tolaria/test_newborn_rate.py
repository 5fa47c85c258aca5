"""A newborn's own rate is applied to the optimizer step alone, and never seen by a schedule."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from esper.errors import ConfigError
from esper.services.tolaria.newborn_rate import RATE, NewbornRate, NewbornRates, born_at
from esper.services.tolaria.optimizer import add_newborn
from esper.services.tolaria.optimizer_state import capture_optimizer, restore_optimizer
from esper.services.tolaria.schedules import regrouped

RISE = NewbornRate(warmup_steps=4, boost=2.0, boost_steps=5)
FACTORS = [0.5, 1.0, 1.5, 2.0, 2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 1.0]


def test_the_factor_rises_to_the_boost_and_falls_to_one() -> None:
    assert [RISE.factor(age) for age in range(11)] == pytest.approx(FACTORS)
    assert [NewbornRate(warmup_steps=2).factor(age) for age in range(4)] == [0.5, 1.0, 1.0, 1.0]
    assert NewbornRate().factor(0) == 1.0


@pytest.mark.parametrize(
    "wrong", [{"warmup_steps": -1}, {"boost": 0.0, "boost_steps": 3}, {"boost": 2.0}, {"boost": float("inf")}]
)
def test_a_rate_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        NewbornRate(**wrong)  # type: ignore[arg-type]
    assert caught.value.code == "ESP-2126"


class Growing:
    """A host and a newborn whose gradient is 1, so that a step of SGD moves them by their rate."""

    def __init__(self, rate: float | Tensor = 0.5) -> None:
        self.host, self.newborn = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.optimizer = torch.optim.SGD([self.host], lr=rate)
        self.schedule = CosineAnnealingLR(self.optimizer, T_max=20)
        self.rates = NewbornRates(self.optimizer)

    def join(self) -> None:
        with regrouped(self.schedule, self.optimizer):
            add_newborn(self.optimizer, {"born": self.newborn}, like=0, options=born_at(RISE))

    def moved(self, steps: int) -> Iterator[tuple[float, float]]:
        """Yield how far host and newborn moved at each step."""
        for _ in range(steps):
            before = self.host.item(), self.newborn.item()
            self.host.grad, self.newborn.grad = torch.ones(()), torch.ones(())
            self.optimizer.step()
            self.schedule.step()
            yield before[0] - self.host.item(), before[1] - self.newborn.item()


@pytest.mark.parametrize("tensor", [False, True])
def test_the_newborn_moves_by_its_factor_and_the_schedule_never_sees_it(tensor: bool) -> None:
    growing = Growing(torch.tensor(0.5) if tensor else 0.5)
    list(growing.moved(2))
    growing.join()
    for factor in FACTORS:
        ((host, newborn),) = growing.moved(1)
        assert newborn == pytest.approx(factor * host, rel=1e-4)
        first, second = growing.optimizer.param_groups
        assert float(first["lr"]) == float(second["lr"])
    assert growing.optimizer.param_groups[1][RATE]["age"] == len(FACTORS)


def test_its_age_is_taken_and_put_back_with_the_group() -> None:
    growing = Growing()
    growing.join()
    list(growing.moved(3))
    named = {"host": growing.host, "born": growing.newborn}
    held = capture_optimizer(growing.optimizer, named)
    values = growing.host.detach().clone(), growing.newborn.detach().clone(), growing.schedule.state_dict()
    expected = list(growing.moved(5))
    restore_optimizer(growing.optimizer, held, named)
    with torch.no_grad():
        growing.host.copy_(values[0])
        growing.newborn.copy_(values[1])
    growing.schedule.load_state_dict(values[2])
    assert list(growing.moved(5)) == expected


def test_a_step_that_raised_leaves_no_factor_behind() -> None:
    growing = Growing()
    growing.join()

    def fail() -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        growing.optimizer.step(fail)
    ((host, newborn),) = growing.moved(1)
    assert newborn == pytest.approx(0.5 * host)
    assert growing.optimizer.param_groups[1]["lr"] == growing.optimizer.param_groups[0]["lr"]
    assert growing.optimizer.param_groups[1][RATE]["age"] == 1


def test_after_closing_a_newborn_learns_at_the_rate_of_its_host() -> None:
    growing = Growing()
    growing.join()
    growing.rates.close()
    ((host, newborn),) = growing.moved(1)
    assert host == newborn
