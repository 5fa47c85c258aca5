"""How much a model may grow."""

import re
from dataclasses import dataclass

from torch import nn

from esper.errors import ConfigError
from esper.kasmina.placement import CHILD

_FORM = re.compile(r"^(?:\+(?P<percent>\d+(?:\.\d+)?)\s*%|x(?P<factor>\d+(?:\.\d+)?))$")


@dataclass(frozen=True)
class ParamCount:
    """Parameters of a model: those of the host, and those that grafts of earlier runs added."""

    host: int
    grafts: int


def count_params(model: nn.Module) -> ParamCount:
    """Count the parameters of a wrapped model."""
    sizes = [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    grafts = sum(size for name, size in sizes if f"{CHILD}." in name)
    return ParamCount(sum(size for _, size in sizes) - grafts, grafts)


@dataclass(frozen=True)
class Budget:
    """Limits on what grafts may add; None means no limit.

    Attributes:
        params: Parameters that may be added.
        flops: Forward FLOPs per example that may be added.
        latency: Milliseconds per forward that may be added, by the forge's measurement of each kernel.
    """

    params: int | None = None
    flops: int | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        for name in ("params", "flops", "latency"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(
                    f"budget {name}={value} is negative", todo="leave it out for no limit", code="ESP-2105"
                )

    @classmethod
    def of(cls, given: "str | Budget", *, host_params: int) -> "Budget":
        """Read a budget as users write it.

        Args:
            given: ``"+30%"`` (at most 30 % of the host's parameters are added), ``"x4"`` (the whole ends at up to four
                times the host), or a Budget.
            host_params: Parameters of the host alone.

        Raises:
            ConfigError: If it is neither.
        """
        if isinstance(given, Budget):
            return given
        match = _FORM.match(given.strip()) if isinstance(given, str) else None
        if match is None:
            raise _not_a_ratio(given)
        if match["percent"]:
            return cls(params=int(host_params * float(match["percent"]) / 100))
        return cls(params=_added_by_factor(host_params, float(match["factor"]), given))


def _added_by_factor(host_params: int, factor: float, given: object) -> int:
    if factor < 1:
        raise ConfigError(
            f'budget "{given}" would shrink the host',
            why="a factor counts the whole",
            todo='write "x1" or more',
            code="ESP-2104",
        )
    return int(host_params * (factor - 1))


def _not_a_ratio(given: object) -> ConfigError:
    digits = re.sub(r"[^\d.]", "", str(given))
    meant = f"x{digits}" if "x" in str(given) else f"+{digits}%"
    hint = f'Did you mean "{meant}"?' if digits else 'Write "+30%", "x4" or esper.Budget(params=...)'
    return ConfigError(f'budget "{given}" is not a ratio', todo=hint, code="ESP-2104")
