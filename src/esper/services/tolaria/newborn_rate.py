"""A newborn's learning rate, where it is to differ from its host's at first: warmed up, boosted, or both.

Schedules never see the difference: it is applied just before an optimizer step and taken back after it, so that those
which compute the next rate from the present one, as cosine does, do not compound it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from esper.errors import ConfigError

RATE = "esper_rate"
"""Key in a newborn's group: how its learning rate differs, as plain numbers; it is resumed and rolled back with the group."""


@dataclass(frozen=True)
class NewbornRate:
    """How a newborn's learning rate differs from its host's in its first steps, as a factor.

    Without it a newborn learns at the host's rate from its first step, which is best where that rate was tuned.

    Attributes:
        warmup_steps: Steps in which the factor rises from near 0, in equal steps.
        boost: The factor at the end of the warm-up; 1 for none.
        boost_steps: Steps after the warm-up in which the factor falls to 1, in equal steps.

    Raises:
        ConfigError: If a number of steps is negative, the boost is not positive, or it would never end.
    """

    warmup_steps: int = 0
    boost: float = 1.0
    boost_steps: int = 0

    def __post_init__(self) -> None:
        why = _fault(self)
        if why:
            raise ConfigError(
                f"newborn_rate={self!r}", why=why, todo="give steps of 0 or more and a boost above 0", code="ESP-2126"
            )

    def factor(self, age: int) -> float:
        """Return the factor of the step that a newborn takes after ``age`` others."""
        if age < self.warmup_steps:
            return self.boost * (age + 1) / self.warmup_steps
        left = 1.0 - (age - self.warmup_steps) / self.boost_steps if self.boost_steps else 0.0
        return 1.0 + (self.boost - 1.0) * max(0.0, left)


def born_at(rate: NewbornRate | None) -> dict[str, Any]:
    """Return what a newborn's group holds of its rate."""
    return {} if rate is None else {RATE: {**asdict(rate), "age": 0}}


class NewbornRates:
    """Applies the factors of all newborns to one optimizer.

    Args:
        optimizer: Its groups hold the factors, and the age of each newborn in optimizer steps.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._own: list[tuple[dict[str, Any], Any, Any]] = []
        self._hooks = (
            optimizer.register_step_pre_hook(self._apply),
            optimizer.register_step_post_hook(self._take_back),
        )

    def settle(self) -> None:
        """Take the factors back where a step that raised has left them."""
        for group, own, applied in self._own:
            if group.get("lr") is applied:  # not what a rollback has put there since
                group["lr"] = own
        self._own.clear()

    def close(self) -> None:
        """Leave the optimizer as a plain one: newborns learn at their hosts' rates."""
        self.settle()
        for hook in self._hooks:
            hook.remove()

    def _apply(self, optimizer: Optimizer, *_: object) -> None:
        self.settle()
        for group in optimizer.param_groups:
            if RATE in group:
                factor = _factor(group[RATE])
                if factor != 1.0:
                    own = group["lr"]
                    group["lr"] = own.clone().mul_(factor) if isinstance(own, Tensor) else own * factor
                    self._own.append((group, own, group["lr"]))

    def _take_back(self, optimizer: Optimizer, *_: object) -> None:
        self.settle()
        for group in optimizer.param_groups:
            if RATE in group:
                group[RATE] = {**group[RATE], "age": group[RATE]["age"] + 1}


def _factor(held: dict[str, Any]) -> float:
    return NewbornRate(**{key: value for key, value in held.items() if key != "age"}).factor(held["age"])


def _fault(rate: NewbornRate) -> str:
    if min(rate.warmup_steps, rate.boost_steps) < 0:
        return "steps cannot be negative"
    if not 0.0 < rate.boost < float("inf"):
        return "the boost is a factor"
    if rate.boost != 1.0 and not rate.boost_steps:
        return "a boost must end: boost_steps is 0"
    return ""
