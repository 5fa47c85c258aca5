"""Typed attributes of operations: what each may hold, and why a value is refused."""

import math
from dataclasses import dataclass
from typing import Protocol

from esper.ir.types import Attr


class RuleBroken(ValueError):
    """An operation cannot be used like that.

    Args:
        why: The rule.
        attr: Attribute at fault, or None where it is the inputs.
    """

    def __init__(self, why: str, *, attr: str | None = None) -> None:
        self.why = why
        self.attr = attr
        super().__init__(why)


class AttrSpec(Protocol):
    """What one attribute may hold."""

    @property
    def default(self) -> Attr | None:
        """The value where none is given; None means that one must be given."""
        ...

    def parse(self, value: object) -> Attr:
        """Return the value in its canonical form.

        Raises:
            RuleBroken: If it is not allowed.
        """
        ...


@dataclass(frozen=True)
class IntAttr:
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int
    default: int | None = None
    odd: bool = False

    def parse(self, value: object) -> Attr:
        """Return the number."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise RuleBroken(f"an integer is needed, not {_shown(value)}")
        if not self.low <= value <= self.high:
            raise RuleBroken(f"it must lie in {self.low}..{self.high}, not be {_shown(value)}")
        if self.odd and value % 2 == 0:
            raise RuleBroken(f"it must be odd, so that the extent can be kept, not {value}")
        return value


@dataclass(frozen=True)
class FloatAttr:
    """A finite number of magnitude at most ``limit``."""

    limit: float
    default: float | None = None

    def parse(self, value: object) -> Attr:
        """Return the number as a float; minus zero becomes zero."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RuleBroken(f"a number is needed, not {_shown(value)}")
        if isinstance(value, float) and not math.isfinite(value):
            raise RuleBroken(f"it must be finite, not {value}")
        if abs(value) > self.limit:
            raise RuleBroken(f"its magnitude must be at most {self.limit:g}, not {_shown(value)}")
        return float(value) + 0.0


@dataclass(frozen=True)
class BoolAttr:
    """True or false."""

    default: bool | None = None

    def parse(self, value: object) -> Attr:
        """Return the truth value."""
        if not isinstance(value, bool):
            raise RuleBroken(f"true or false is needed, not {_shown(value)}")
        return value


@dataclass(frozen=True)
class ChoiceAttr:
    """One of a few words."""

    choices: tuple[str, ...]
    default: str | None = None

    def parse(self, value: object) -> Attr:
        """Return the word."""
        if not isinstance(value, str) or value not in self.choices:
            raise RuleBroken(f"it must be one of {', '.join(self.choices)}, not {_shown(value)}")
        return value


def _shown(value: object) -> str:
    """Show a value that was sent, without repeating a flood."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
