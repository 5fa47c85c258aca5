"""What is said where a library that an integration needs is not installed."""

from esper.errors import ConfigError


def missing(module: str, error: ImportError, *, extra: str | None = None) -> ConfigError:
    """Return the error for an integration whose library cannot be imported."""
    return ConfigError(
        f"esper.integrations.{module} needs a library that is not here",
        why=str(error),
        todo=f'pip install "esper-morphogenesis[{extra or module}]"',
        code="ESP-2460",
    )
