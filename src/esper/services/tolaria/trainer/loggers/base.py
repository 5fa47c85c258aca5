"""What a logger is, and all of them together: one that fails is counted, and stops nobody."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from esper.kasmina.quiet import preserved_rng
from esper.services.tolaria.events import GrowthEvent


@runtime_checkable
class Logger(Protocol):
    """Takes metrics; ``event(event)`` and ``close()`` are called too where it has them."""

    def log(self, metrics: Mapping[str, float], step: int) -> object:
        """Take the metrics of an optimizer step."""
        ...


class Loggers:
    """All loggers of a run.

    Args:
        loggers: They are called in order.

    Attributes:
        failures: How often each of them failed, by kind.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = tuple(loggers)
        self.failures: dict[str, int] = {}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Give the metrics of a step to all of them."""
        for logger in self._loggers:
            self._tried(logger, "log", metrics, step)

    def event(self, event: GrowthEvent) -> None:
        """Give a growth event to those that take events."""
        for logger in self._loggers:
            self._tried(logger, "event", event)

    def close(self) -> None:
        """End those that have an end."""
        for logger in self._loggers:
            self._tried(logger, "close")

    def _tried(self, logger: Logger, name: str, *arguments: object) -> None:
        act = getattr(logger, name, None)
        if act is None:
            return
        try:
            act(*arguments)
        except Exception as error:
            kind = type(logger).__name__
            self.failures[kind] = self.failures.get(kind, 0) + 1
            _warn(kind, name, error)


def _warn(kind: str, call: str, error: Exception) -> None:
    with preserved_rng():  # what structlog imports draws
        from esper.telemetry.logs import get_logger

        get_logger("tolaria.trainer").warning("logger_failed", logger=kind, call=call, error=str(error))
