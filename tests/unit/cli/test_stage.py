"""What a person sees: events with their reasons as they happen, then the table; plain in a log, silent beside JSON."""

import io
import re
import sys

import pytest

from esper.cli.stage import Stage
from esper.demos.arms import Arm
from esper.demos.demo import Demo
from esper.demos.messages import Grown, Message, Progress, Score, Started, Trained


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def grown(arm: Arm = Arm.ESPER) -> Grown:
    return Grown(
        arm=arm, seed=0, step=100, action="grafted", slot="block1", blueprint="gated_mlp", why="early, at 10% [of] it",
        gain=None, kept=None, added_params=1272, validation=Score(0.61, loss=0.6),
    )  # fmt: skip


def story(demo: Demo) -> list[Message]:
    """Tell a demo of two seeds in which static final wins; what is trained is noted as a real run notes it."""
    messages: list[Message] = [
        Started(Arm.ESPER, 0, 10, 114),
        Progress(Arm.ESPER, 0, 5),
        grown(),
        grown(Arm.FRONT_FIRST),
    ]
    for arm in Arm:
        for seed in demo.seeds:
            test = {Arm.STATIC_SMALL: 0.5, Arm.STATIC_FINAL: 0.99}.get(arm, 0.9) + seed / 1000
            messages.append(
                Trained(
                    arm=arm, seed=seed, steps=10, params=114 if arm is Arm.STATIC_SMALL else 2658,
                    train_flops=100 if arm is Arm.STATIC_SMALL else 2000, validation=Score(0.9, loss=0.1),
                    test=Score(test, loss=1 - test),
                    waits=1 if arm is Arm.ESPER else 0, late_waits=2 if arm.grows else 0,
                )
            )  # fmt: skip
    return messages


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, silent: bool = False) -> str:
    monkeypatch.setattr(sys, "stderr" if silent else "stdout", stream)
    demo = Demo("spirals", num_seeds=2, root="nowhere")
    with Stage(demo, silent=silent) as stage:
        for message in story(demo):
            if isinstance(message, Trained):
                demo.results.append(message)
            stage.show(message)
    if not silent:
        stage.conclude()
    return stream.getvalue()


def test_a_log_has_plain_lines_with_the_reason_of_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert lines[1] == "host 114 params | 2 slots | controller plateau | budget x24 | 2 seeds"
    assert (
        lines[2]
        == "seed 0  step 100   val  61.0 %  graft   gated_mlp@block1  +1,272 params   why: early, at 10% [of] it"
    )
    assert "trained static small on 2 seeds" in lines
    assert "\x1b" not in "".join(lines)


def test_events_of_other_arms_are_not_taken_for_espers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO()).count("graft ") == 1


def test_the_end_has_the_table_who_wins_the_waits_and_what_to_do_next(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, io.StringIO())
    assert "esper beside static small: +40.00 ± 0.00 points: esper wins, at 20.00x its FLOPs" in text
    assert "here esper loses to static final" in text
    assert "training waited 2 times unasked, 12 times for kernels and decisions" in text
    assert text.splitlines()[-1].startswith("next: esper demo digits")


def test_a_terminal_gets_colour_unless_it_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colour = re.compile("\x1b\\[[0-9;]*3[0-9]")
    assert colour.search(shown(monkeypatch, Terminal()))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(shown(monkeypatch, Terminal()))


def test_beside_json_a_log_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), silent=True) == ""
