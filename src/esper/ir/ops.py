"""The op table: a closed set of operations, and the extensions that were installed."""

import importlib
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from esper.errors import ConfigError, NotFound, VersionTaken
from esper.ir.opset import BUILT_IN
from esper.ir.spec import OpSpec

_TABLE: dict[str, OpSpec] = {spec.name: spec for spec in BUILT_IN}


def names() -> tuple[str, ...]:
    """Return the names of all operations, in alphabetical order."""
    return tuple(sorted(_TABLE))


def get(name: str) -> OpSpec:
    """Return an operation.

    Raises:
        NotFound: If there is none of that name.
    """
    spec = _TABLE.get(name)
    if spec is None:
        raise NotFound(f"no operation {name!r}", why="the op table is closed", todo=near(name, _TABLE))
    return spec


def register(spec: OpSpec) -> OpSpec:
    """Install an extension, marked untrusted whatever it says of itself.

    Its torch body is installed with `esper.blueprints.register_body`, its numpy one with `esper.reference.register_formula`.

    Raises:
        ConfigError: If its name has no dot; plain names belong to the closed set.
        VersionTaken: If another operation has the name.
    """
    if spec.name.count(".") != 1 or not spec.name.replace(".", "_").isidentifier():
        raise ConfigError(
            f"extension {spec.name!r} cannot be installed",
            why="names without a dot belong to the closed set",
            todo="Name it 'yours.op'.",
        )
    installed = replace(spec, trusted=False)
    if _TABLE.setdefault(spec.name, installed) != installed:
        raise VersionTaken(f"operation {spec.name!r} is installed already", todo="Give the extension another name.")
    return installed


def install(modules: Iterable[str]) -> None:
    """Import modules that register extensions.

    Args:
        modules: Their names.

    Raises:
        ConfigError: If one cannot be imported.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a module of somebody else's raises
            raise ConfigError(
                f"extension {name!r} cannot be imported",
                why=f"{type(error).__name__}: {error}",
                todo="install it where this process finds it, or check its name",
            ) from error


def unregister(name: str) -> None:
    """Take an extension out again.

    Raises:
        ConfigError: If it belongs to the closed set.
        NotFound: If there is none of that name.
    """
    if get(name).trusted:
        raise ConfigError(f"operation {name!r} cannot be removed", why="it belongs to the closed set")
    del _TABLE[name]


def near(name: str, known: Iterable[str]) -> str:
    """Return advice that names what was probably meant, or all there is."""
    known = sorted(known)
    matches = get_close_matches(name, known, n=3)
    if matches:
        return f"Did you mean {' or '.join(repr(match) for match in matches)}?"
    return f"There are: {', '.join(known) or 'none'}."
