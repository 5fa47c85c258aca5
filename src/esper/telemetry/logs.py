"""Events with fields, for whoever wants to read them: a file, a terminal, or the standard library's logging.

Nothing is written until a file or terminal is opened, or the application configures the logger ``esper``. Neither structlog's
nor the standard library's global settings are touched.
"""

import logging
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

from esper.errors import ConfigError

ROOT = "esper"

logging.getLogger(ROOT).addHandler(logging.NullHandler())


@dataclass
class _Sink:
    """One place that events go to.

    Attributes:
        stream: Where lines are written.
        level: Least level that is written, as the standard library counts.
        render: Turns an event into a line.
        run_id: Only events of this run are written; None means all.
    """

    stream: TextIO
    level: int
    render: Processor
    run_id: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, method: str, event: MutableMapping[str, Any]) -> None:
        if self.run_id is not None and event.get("run_id") != self.run_id:
            return
        line = str(self.render(None, method, dict(event)))
        with self.lock:
            self.stream.write(f"{line}\n")
            self.stream.flush()


_sinks: list[_Sink] = []


def get_logger(part: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a part: ``log.info("kernel_rejected", kernel_id=…)``.

    Args:
        part: Name of the part, such as ``tamiyo.analyzer``.

    Returns:
        A logger for an event name and its fields; ``bind`` adds fields to all that follow.
    """
    logger: structlog.stdlib.BoundLogger = structlog.wrap_logger(
        logging.getLogger(f"{ROOT}.{part}"),
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _to_sinks,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.render_to_log_kwargs,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return logger


@contextmanager
def to_file(path: Path, *, level: str = "info", run_id: str | None = None) -> Iterator[None]:
    """Write events to a file inside the block, one JSON object per line, after what it holds already.

    Args:
        path: The file; its folder exists.
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
        run_id: Only events with this ``run_id`` are written; None means all of this process.

    Raises:
        ConfigError: If the file cannot be written, or there is no such level.
    """
    least = _level(level)
    try:
        stream = path.open("a", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the log {path} cannot be written", why=error.strerror or str(error), code="ESP-2531"
        ) from error
    with stream, _opened(_Sink(stream, least, structlog.processors.JSONRenderer(default=repr), run_id)):
        yield


@contextmanager
def to_terminal(
    stream: TextIO | None = None, *, level: str = "info", json: bool = False, colors: bool = False
) -> Iterator[None]:
    """Write events to a terminal inside the block.

    Args:
        stream: Where to; standard error where it is left out.
        level: Least level that is written.
        json: Whether each line is a JSON object.
        colors: Whether the terminal shows colours.

    Raises:
        ConfigError: If there is no such level.
    """
    render: Processor = structlog.dev.ConsoleRenderer(colors=colors)
    if json:
        render = structlog.processors.JSONRenderer(default=repr)
    with _opened(_Sink(stream or sys.stderr, _level(level), render)):
        yield


@contextmanager
def _opened(sink: _Sink) -> Iterator[None]:
    _sinks.append(sink)
    try:
        yield
    finally:
        _sinks.remove(sink)


def _to_sinks(_: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    level = logging.getLevelNamesMapping()[str(event["level"]).upper()]
    for sink in tuple(_sinks):
        if level >= sink.level:
            sink.write(method, event)
    return event


def _level(name: str) -> int:
    levels = ("debug", "info", "warning", "error", "critical")
    if name not in levels:
        raise ConfigError(f"log level {name!r} is not known", todo=f"one of {', '.join(levels)}", code="ESP-2530")
    return logging.getLevelNamesMapping()[name.upper()]
