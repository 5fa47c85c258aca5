"""The settings of services, with what was given on the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

    from esper.services.urza.rest.config import UrzaConfig

Config = TypeVar("Config", bound="BaseModel")


def configured(kind: type[Config], part: str, given: Mapping[str, object]) -> Config:
    """Return the settings of a part, with what was given on the command line in place of theirs.

    Args:
        kind: What they must be.
        part: Name of the part.
        given: Values by setting; None where none was given.

    Raises:
        ConfigError: If they cannot be used.
    """
    from pydantic import ValidationError

    from esper.errors import ConfigError
    from esper.settings import load

    config = load(kind, part)
    told = {name: value for name, value in given.items() if value is not None}
    try:
        return kind.model_validate({**config.model_dump(), **told})
    except ValidationError as error:
        why = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(f"the settings of {part} cannot be used", why=why, code="ESP-2520") from None


def store_config(*, root: Path | None, host: str | None = None, port: int | None = None) -> "UrzaConfig":
    """Return the settings of the store, with what was given on the command line in place of theirs.

    Raises:
        ConfigError: If they cannot be used.
    """
    from esper.services.urza.rest.config import UrzaConfig

    return configured(UrzaConfig, "urza", {"root": root, "host": host, "port": port})
