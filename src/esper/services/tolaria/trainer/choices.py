"""Names that stand for parts, and what is said where one is not known."""

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from esper.errors import ConfigError

Part = TypeVar("Part")


def chosen(name: str, given: str, table: Mapping[str, Part]) -> Part:
    """Return the part of that name.

    Raises:
        ConfigError: If there is none; it lists those that there are.
    """
    if given in table:
        return table[given]
    near = get_close_matches(given, table, n=1)
    guess = f'did you mean "{near[0]}"? ' if near else ""
    raise ConfigError(f"{name} {given!r} is not known", todo=f"{guess}one of {', '.join(table)}", code="ESP-2163")


def check(claim: bool, what: str, *, why: str, todo: str = "") -> None:
    """Refuse a setting of the trainer that cannot be used.

    Raises:
        ConfigError: If the claim does not hold.
    """
    if not claim:
        raise ConfigError(what, why=why, todo=todo, code="ESP-2700")


def check_name_or_function(name: str, given: str | Callable[..., Any], table: Mapping[str, Any]) -> None:
    """Refuse what is neither a known name nor a function.

    Raises:
        ConfigError: If it is neither.
    """
    if isinstance(given, str):
        chosen(name, given, table)
    else:
        check(callable(given), f"{name} is a {type(given).__name__}", why="it must be a name or a function")
