"""Says what is missing where the bus between processes is asked for and cannot be had."""

from importlib.util import find_spec

from esper.errors import ConfigError


def check_redis() -> None:
    """Refuse a bus on Redis where its client is not installed.

    Raises:
        ConfigError: If it is not.
    """
    if find_spec("redis") is None:
        raise ConfigError(
            "a bus on Redis was asked for",
            why="its client is not installed",
            todo='pip install "esper-morphogenesis[services]"',
            code="ESP-2804",
        )
