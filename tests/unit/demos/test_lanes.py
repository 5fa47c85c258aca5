"""Training processes do the jobs, say what happens, report their own end, and leave nothing behind."""

import os
from collections.abc import Iterator

import pytest

from esper.demos.arms import Arm
from esper.demos.lanes import Lanes
from esper.demos.messages import Failed, Job, Started, Trained, read_job, read_message, written
from esper.errors import ConfigError, EsperError, InvalidBlueprint, NotFound


def job(arm: Arm = Arm.STATIC_SMALL, seed: int = 0, task: str = "spirals") -> Job:
    return Job(task=task, arm=arm, seed=seed, rate=0.01, root="nowhere", quick=True)


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    with Lanes(1) as lanes:
        yield lanes


def test_a_job_is_done_and_said_to_be_done(lanes: Lanes) -> None:
    lanes.add([job()])
    messages = list(lanes.messages())
    assert isinstance(messages[0], Started)
    assert isinstance(messages[-1], Trained)
    assert messages[-1].steps == 240


def test_a_job_that_is_added_on_the_way_is_done_too(lanes: Lanes) -> None:
    lanes.add([job()])
    done = []
    for message in lanes.messages():
        if isinstance(message, Trained):
            done.append(message.seed)
            lanes.add([job(seed=1)] if message.seed == 0 else [])
    assert done == [0, 1]


def test_arms_that_take_longest_are_begun_first(lanes: Lanes) -> None:
    lanes.add([job(Arm.STATIC_SMALL), job(Arm.STATIC_FINAL)])
    done = [message.arm for message in lanes.messages() if isinstance(message, Trained)]
    assert done == [Arm.STATIC_FINAL, Arm.STATIC_SMALL]


def test_an_error_comes_back_as_the_same_error(lanes: Lanes) -> None:
    lanes.add([job(task="digit")])
    (failed,) = [message for message in lanes.messages() if isinstance(message, Failed)]
    error = failed.error()
    assert isinstance(error, NotFound)
    assert str(error) == "ESP-5101: no demo 'digit': demos are digits, spirals, pydoc. Did you mean digits?"


def test_a_process_that_dies_is_reported_and_another_one_takes_the_next_job() -> None:
    with Lanes(1) as lanes:
        lanes.add([job()])
        failed = None
        for message in lanes.messages():
            if isinstance(message, Started):
                os.kill(lanes._started[0].pid, 9)
            if isinstance(message, Failed):
                failed = message
        assert failed is not None
        assert "ended with status -9" in str(failed.error())
        lanes.add([job(seed=3)])
        assert [message.seed for message in lanes.messages() if isinstance(message, Trained)] == [3]


def test_closing_ends_a_process_in_the_middle_of_its_work() -> None:
    with Lanes(1) as lanes:
        lanes.add([job()])
        next(lanes.messages())
    assert [process.returncode is not None for process in lanes._started] == [True]


def test_what_is_written_is_read_back() -> None:
    sent = job()
    assert read_job(written(sent)) == sent
    failed = Failed.by(sent, ConfigError("a", why="b", todo="c", code="ESP-2999"))
    assert read_message(written(failed)) == failed
    assert str(failed.error()) == "ESP-2999: a: b. c"


def test_errors_that_are_not_espers_and_those_with_other_fields_keep_their_sentence() -> None:
    failed = Failed.by(job(), ValueError("odd"))
    assert type(failed.error()) is EsperError
    assert "ValueError: odd" in str(failed.error())
    shaped = Failed.by(job(), InvalidBlueprint("bad", path="$.nodes[1]"))
    assert "bad at $.nodes[1]" in str(shaped.error())
