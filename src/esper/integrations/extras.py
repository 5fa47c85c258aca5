"""What is said where a library that an integration needs is not installed."""

from esper.errors import ConfigError


def missing(extra: str, error: ImportError) -> ConfigError:
    """Return the error for an integration whose library cannot be imported."""
    return ConfigError(
        f"esper.integrations.{extra} needs a library that is not here",
        why=str(error),
        todo=f'pip install "esper-morphogenesis[{extra}]"',
        code="ESP-2460",
    )
