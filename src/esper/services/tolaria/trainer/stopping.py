"""The best metric so far, and when to give up waiting for a better one."""

import math
from dataclasses import dataclass
from typing import Any

from esper.services.tolaria.trainer.choices import check


@dataclass(frozen=True)
class Stopping:
    """When a run ends before its time.

    Attributes:
        patience: Validations in a row without a better metric after which it ends.
        min_delta: By how much a metric must be better to count.

    Raises:
        ConfigError: If ``patience`` is below 1 or ``min_delta`` below 0.
    """

    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        check(self.patience >= 1, f"patience={self.patience}", why="it counts validations", todo="give 1 or more")
        check(self.min_delta >= 0, f"min_delta={self.min_delta}", why="a difference is not negative")


class Best:
    """The best value of one metric.

    Args:
        mode: ``min`` or ``max``.
        min_delta: By how much a value must be better to count.

    Attributes:
        value: The best so far, or None.
        step: Optimizer step of it.
        waited: Values since then that were no better.
    """

    def __init__(self, mode: str, *, min_delta: float = 0.0) -> None:
        self._sign = 1.0 if mode == "min" else -1.0
        self._min_delta = min_delta
        self.value: float | None = None
        self.step = 0
        self.waited = 0

    def take(self, value: float, step: int) -> bool:
        """Take a value in; True where it is the best. One that is not a number is never better."""
        better = not math.isnan(value) and (
            self.value is None or self._sign * (self.value - value) > self._min_delta
        )  # fmt: skip
        if better:
            self.value, self.step, self.waited = value, step, 0
        else:
            self.waited += 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"value": self.value, "step": self.step, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.value, self.step, self.waited = state["value"], state["step"], state["waited"]
