"""The library that a command is about."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.services.urza.rest.config import UrzaConfig


def store_config(*, root: Path | None, host: str | None = None, port: int | None = None) -> "UrzaConfig":
    """Return the settings of the store, with what was given on the command line in place of theirs.

    Raises:
        ConfigError: If they cannot be used.
    """
    from pydantic import ValidationError

    from esper.errors import ConfigError
    from esper.services.urza.rest.config import UrzaConfig
    from esper.settings import load

    given = {name: value for name, value in (("root", root), ("host", host), ("port", port)) if value is not None}
    config = load(UrzaConfig, "urza")
    try:
        return UrzaConfig.model_validate({**config.model_dump(), **given})
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ConfigError("the settings of urza cannot be used", why=told, code="ESP-2520") from None
