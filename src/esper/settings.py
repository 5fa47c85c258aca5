"""The one reader of environment and TOML; it knows no Config itself.

```python
config = load(MemoryBusConfig, "oona")
```

A field comes from the variable ``ESPER_<PART>_<FIELD>``, else from the section ``[part]`` of the file that ``ESPER_CONFIG``
names (``./esper.toml`` where it is not set), else from the Config's own default. Lists, tables and nested Configs are written
as JSON in a variable.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from esper.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

FILE_VARIABLE = "ESPER_CONFIG"
DEFAULT_FILE = Path("esper.toml")

_PART = re.compile(r"[a-z][a-z0-9]*")
_SECRET = re.compile(r"password|passwd|secret|token|credential|key|dsn|url", re.IGNORECASE)
_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")


@dataclass(frozen=True)
class _File:
    """A TOML file.

    Attributes:
        path: Where it is, or None where there is none.
        sections: Its tables.
        text: What it holds, to find the line of a key.
    """

    path: Path | None = None
    sections: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def where(self, part: str, key: str = "") -> str:
        """Return file and line of a key in a section, or of the section itself."""
        line = _line(self.text, part, key)
        return f"{self.path}:{line}" if line else str(self.path)


def load(
    config: type[Config],
    part: str,
    *,
    path: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Read the settings of one part.

    Args:
        config: What they must be.
        part: Name of the part: small letters and digits.
        path: The TOML file, which must exist; where it is left out, what ``ESPER_CONFIG`` names, or ``./esper.toml``.
        environment: Variables; those of this process where it is left out.

    Returns:
        The settings, validated.

    Raises:
        ConfigError: If a name is not known, a value cannot be used, or the file cannot be read; it says where. The values of
            secrets are never in it.
    """
    if _PART.fullmatch(part) is None:
        raise ConfigError(
            f"part {part!r} cannot be named so",
            why="small letters and digits, beginning with a letter",
            code="ESP-2500",
        )
    variables = os.environ if environment is None else environment
    file = _read(path, variables)
    values, places = _from_file(file, part)
    for name, (value, variable) in _from_variables(config, part, variables).items():
        values[name], places[name] = value, variable
    _refuse_unknown(config, part, values, places)
    found, faults = _validated(config, values)
    if found is None:
        raise ConfigError(
            f"the settings of {part} cannot be used",
            why="; ".join(_told(config, fault, places) for fault in faults),
            code="ESP-2520",
        )
    return found


def check_parts(
    parts: Iterable[str],
    *,
    path: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Refuse sections and variables of parts that do not exist, so that a misspelt one is not passed over.

    Args:
        parts: Every part that reads settings.
        path: As for ``load``.
        environment: As for ``load``.

    Raises:
        ConfigError: If there is one; it says where, and what was probably meant.
    """
    known = sorted(parts)
    variables = os.environ if environment is None else environment
    file = _read(path, variables)
    for section in file.sections:
        if section not in known:
            raise _unknown(f"section [{section}]", file.where(section), section, known)
    for variable in sorted(variables):
        part = variable.removeprefix("ESPER_").partition("_")[0].lower()
        if variable.startswith("ESPER_") and variable != FILE_VARIABLE and part not in known:
            raise _unknown(f"variable {variable}", "the environment", part, known)


# -- reading -------------------------------------------------------------------------------------------------------------


def _read(path: str | os.PathLike[str] | None, variables: Mapping[str, str]) -> _File:
    named = path if path is not None else variables.get(FILE_VARIABLE)
    chosen = DEFAULT_FILE if named is None else Path(named)
    if named is None and not chosen.exists():
        return _File()
    origin = "the argument path" if path is not None else FILE_VARIABLE
    try:
        text = chosen.read_text(encoding="utf-8")
        return _File(chosen, tomllib.loads(text), text)
    except OSError as error:
        why = f"{origin} names it: {error.strerror or error}" if named is not None else str(error)
        raise ConfigError(f"the settings file {chosen} cannot be read", why=why, code="ESP-2501") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the settings file {chosen} is no TOML", why=str(error), code="ESP-2502") from error


def _from_file(file: _File, part: str) -> tuple[dict[str, Any], dict[str, str]]:
    section = file.sections.get(part, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{part} at {file.where(part)} is no section", todo=f"write [{part}]", code="ESP-2511")
    return dict(section), {name: file.where(part, name) for name in section}


def _from_variables(config: type[BaseModel], part: str, variables: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    prefix = f"ESPER_{part.upper()}_"
    found: dict[str, tuple[Any, str]] = {}
    for variable in sorted(v for v in variables if v.startswith(prefix)):
        name = variable.removeprefix(prefix).lower()
        found[name] = _parsed(config, name, variables[variable]), variable
    return found


def _parsed(config: type[BaseModel], name: str, text: str) -> Any:
    """Read lists and tables as JSON; everything else is turned into its type by the Config."""
    known = config.model_fields.get(name)
    if known is None or known.annotation is str or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


# -- refusing ------------------------------------------------------------------------------------------------------------


def _refuse_unknown(config: type[BaseModel], part: str, values: dict[str, Any], places: dict[str, str]) -> None:
    for name in values:
        if name not in config.model_fields:
            raise _unknown(f"setting {part}.{name}", places[name], name, sorted(config.model_fields))


def _unknown(what: str, place: str, name: str, known: list[str]) -> ConfigError:
    near = get_close_matches(name, known, n=1)
    todo = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"
    return ConfigError(f"{what} is not known", why=f"it stands in {place}", todo=todo, code="ESP-2510")


def _validated(config: type[Config], values: dict[str, Any]) -> tuple[Config | None, list[Any]]:
    """Return the Config, or the faults without their inputs.

    The error is not raised from pydantic's: a traceback would show its inputs, and one of them may be a secret.
    """
    try:
        return config.model_validate(values), []
    except ValidationError as error:
        return None, list(error.errors(include_url=False, include_context=False, include_input=False))


def _told(config: type[BaseModel], fault: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Return one fault with its place; what a secret's own checks say is left out, for they may repeat it."""
    location = [str(step) for step in fault["loc"]]
    name = location[0] if location else ""
    secrets = [field for field in config.model_fields if _is_secret(config, field)]
    hidden = bool(secrets) if not name else any(map(_SECRET.search, location)) or name in secrets
    message = f"{fault['type']}; the message is withheld, because it may show a secret" if hidden else str(fault["msg"])
    place = f" ({places[name]})" if name in places else ""
    return f"{'.'.join(location)}: {message}{place}" if location else message


def _is_secret(config: type[BaseModel], name: str) -> bool:
    return bool(_SECRET.search(name)) or _holds_secret(config.model_fields[name].annotation)


def _holds_secret(annotation: object) -> bool:
    return annotation in (SecretStr, SecretBytes) or any(map(_holds_secret, get_args(annotation)))


def _line(text: str, part: str, key: str) -> int | None:
    """Return the number of the line on which a key of a section stands, or the section itself, as far as lines tell."""
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if (opened := _TABLE.match(line)) is not None:
            table = opened[1]
            if table == (f"{part}.{key}" if key else part):
                return number
        elif (given := _KEY.match(line)) is not None:
            dotted = f"{table}.{given[1]}".lstrip(".")
            if key and (dotted == f"{part}.{key}" or dotted.startswith(f"{part}.{key}.")):
                return number
    return None
