"""Logs are silent until somebody opens them, and then hold events with fields."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from esper.errors import ConfigError
from esper.telemetry import logs


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_importing_and_logging_write_nothing_by_themselves() -> None:
    script = "from esper.telemetry.logs import get_logger\nget_logger('x').error('nobody_listens', a=1)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_settings_of_structlog_and_logging_are_left_alone() -> None:
    with logs.to_terminal(io.StringIO(), level="debug"):
        logs.get_logger("x").info("event")
        assert not structlog.is_configured()
        assert logging.getLogger("esper").level == logging.NOTSET
        assert [type(h) for h in logging.getLogger("esper").handlers] == [logging.NullHandler]


def test_a_file_holds_events_with_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = logs.get_logger("tamiyo.analyzer").bind(run_id="run-1")
    with logs.to_file(path):
        log.info("place_unhealthy", layer_id="fc", z=4.5)
        log.debug("too_small")
    log.info("too_late")
    (line,) = _lines(path)
    timestamp = str(line.pop("timestamp"))
    assert timestamp.endswith("Z")
    assert line == {
        "event": "place_unhealthy",
        "level": "info",
        "logger": "esper.tamiyo.analyzer",
        "run_id": "run-1",
        "layer_id": "fc",
        "z": 4.5,
    }


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for name in ("first", "second"):
        with logs.to_file(path):
            logs.get_logger("x").info(name)
    assert [line["event"] for line in _lines(path)] == ["first", "second"]


def test_the_file_of_a_run_holds_the_events_of_that_run_alone(tmp_path: Path) -> None:
    log = logs.get_logger("x")
    with logs.to_file(tmp_path / "1", run_id="run-1"), logs.to_file(tmp_path / "2", run_id="run-2"):
        log.info("mine", run_id="run-1")
        log.info("nobody's")
    assert [line["event"] for line in _lines(tmp_path / "1")] == ["mine"]
    assert _lines(tmp_path / "2") == []


def test_an_exception_is_written_with_its_traceback(tmp_path: Path) -> None:
    with logs.to_file(tmp_path / "log"):
        try:
            raise ValueError("planted")
        except ValueError:
            logs.get_logger("x").exception("failed", thing=object())
    (line,) = _lines(tmp_path / "log")
    assert "ValueError: planted" in str(line["exception"])


def test_a_terminal_shows_a_line_per_event() -> None:
    stream = io.StringIO()
    with logs.to_terminal(stream):
        logs.get_logger("x").warning("stream_ended", topic="a.b")
    assert "stream_ended" in stream.getvalue()
    assert "topic=a.b" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_an_application_that_uses_logging_gets_the_events_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="esper"):
        logs.get_logger("x").info("event", count=3)
    (record,) = caplog.records
    assert (record.name, record.message, record.count) == ("esper.x", "event", 3)  # type: ignore[attr-defined]


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"), logs.to_file(tmp_path / "no" / "log"):
        pass
    with pytest.raises(ConfigError, match="loud"), logs.to_terminal(level="loud"):
        pass
