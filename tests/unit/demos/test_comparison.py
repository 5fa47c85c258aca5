"""The table and its words are those of the numbers, also where a control wins."""

import math
import re

import pytest
from rich.console import Console

from esper.demos.arms import Arm
from esper.demos.comparison import Comparison, Standing, Verdict
from esper.demos.measures import ACCURACY, BITS, Measure
from esper.demos.messages import Grown, Score, Trained
from esper.demos.table import event_line, table_of, verdict_lines

UNTOLD = Score(accuracy=0.0, loss=0.0)
LN2 = math.log(2)


def trained(arm: Arm, seed: int, test: float, flops: int = 1000, params: int = 10) -> Trained:
    return Trained(
        arm=arm,
        seed=seed,
        steps=1,
        params=params,
        train_flops=flops,
        validation=UNTOLD,
        test=Score(test, loss=LN2 * test),
    )


def compared(*measures: Measure, **tests: tuple[float, ...]) -> Comparison:
    """Compare arms with given test accuracies, and as many bits; those that are left out do as esper does."""
    seeds = range(len(tests["esper"]))
    results = [trained(arm, seed, tests.get(arm.value, tests["esper"])[seed]) for arm in Arm for seed in seeds]
    return Comparison.of(results, measures or (ACCURACY,))


def shown(comparison: Comparison) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table_of(comparison))
    return captured.get()


def test_a_difference_is_paired_and_its_error_is_that_of_the_pairs() -> None:
    verdict = compared(esper=(0.9, 0.8, 0.7), static_small=(0.8, 0.6, 0.6)).verdict(Arm.STATIC_SMALL)
    differences = (0.1, 0.2, 0.1)
    mean = sum(differences) / 3
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
    assert verdict.difference == pytest.approx(mean)
    assert verdict.error == pytest.approx(spread / math.sqrt(3))


@pytest.mark.parametrize(
    ("difference", "error", "standing"),
    [
        (0.021, 0.01, Standing.WINS),
        (0.020, 0.01, Standing.AHEAD),
        (0.011, 0.01, Standing.AHEAD),
        (0.010, 0.01, Standing.LEVEL),
        (-0.010, 0.01, Standing.LEVEL),
        (-0.011, 0.01, Standing.BEHIND),
        (-0.020, 0.01, Standing.BEHIND),
        (-0.021, 0.01, Standing.LOSES),
        (0.0, 0.0, Standing.SAME),
        (-0.1, 0.0, Standing.LOSES),
        (0.5, math.inf, Standing.LEVEL),
    ],
)
def test_two_standard_errors_make_a_win_and_one_makes_no_difference(
    difference: float, error: float, standing: Standing
) -> None:
    assert Verdict(Arm.STATIC_FINAL, difference, error, 1.0, ACCURACY).standing is standing


def test_a_control_that_wins_is_said_to_win() -> None:
    comparison = compared(esper=(0.80, 0.81, 0.82), static_final_equal_flops=(0.90, 0.91, 0.93))
    lines = list(verdict_lines(comparison))
    said = next(line for line in lines if line.startswith("esper beside static final, esper's FLOPs:"))
    assert "-10.33 ± 0.33 points: this control wins" in said
    assert lines[-1] == "here esper loses to static final, esper's FLOPs"


def test_where_no_control_wins_none_is_said_to() -> None:
    lines = list(verdict_lines(compared(esper=(0.9, 0.91, 0.92), static_small=(0.5, 0.5, 0.5))))
    assert not any("loses" in line or "this control wins" in line for line in lines)
    assert "esper beside static small: +41.00 ± 0.58 points: esper wins, at 1.00x its FLOPs" in lines


def test_one_seed_is_said_to_tell_nothing() -> None:
    assert "on one seed, which tells nothing" in "\n".join(verdict_lines(compared(esper=(0.9,), static_small=(0.1,))))


def test_the_table_has_means_deviations_and_flops_relative_to_static_small() -> None:
    results = [trained(arm, seed, 0.5, flops=100) for arm in Arm for seed in (0, 1) if arm is not Arm.ESPER]
    results += [
        trained(Arm.ESPER, 0, 0.8, flops=1000, params=2000),
        trained(Arm.ESPER, 1, 0.9, flops=1440, params=2400),
    ]
    comparison = Comparison.of(results, (ACCURACY,))
    row = comparison.row(Arm.ESPER)
    assert (row.params, row.train_flops) == (2200, 1220)
    (test,) = row.tests
    assert test.mean == pytest.approx(0.85)
    assert test.sd == pytest.approx(math.sqrt(0.005))
    esper = next(line for line in shown(comparison).splitlines() if line.startswith("esper "))
    assert esper.split() == ["esper", "2,200", "85.0", "±", "7.1", "12.2x"]
    small = next(line for line in shown(comparison).splitlines() if line.startswith("static small "))
    assert small.split() == ["static", "small", "10", "50.0", "±", "0.0", "1.0x", "+35.00", "±", "5.00"]


def test_the_arms_keep_their_order() -> None:
    assert [row.arm for row in compared(esper=(0.5, 0.5)).rows] == list(Arm)


def test_an_arm_that_lacks_a_seed_is_not_compared() -> None:
    results = [trained(arm, seed, 0.5) for arm in Arm for seed in (0, 1)]
    with pytest.raises(ValueError, match="every seed"):
        Comparison.of(results[:-1], (ACCURACY,))


def test_a_test_part_that_was_not_read_is_not_reported() -> None:
    results = [trained(arm, 0, 0.5) for arm in Arm if arm is not Arm.ESPER]
    unread = Trained(arm=Arm.ESPER, seed=0, steps=1, params=1, train_flops=1, validation=UNTOLD, test=None)
    with pytest.raises(ValueError, match="not read"):
        Comparison.of([*results, unread], (ACCURACY,))


def test_an_event_says_when_where_what_and_why() -> None:
    event = Grown(
        arm=Arm.ESPER, seed=2, step=420, action="grafted", slot="block1", blueprint="mlp_adapter",
        why="plateau over 150 steps, bottleneck score 0.41", gain=None, kept=None, added_params=1112,
        validation=Score(0.654, loss=2.5 * LN2),
    )  # fmt: skip
    assert event_line(event, ACCURACY) == (
        "seed 2  step 420   val  65.4 %  graft   mlp_adapter@block1  +1,112 params"
        "   why: plateau over 150 steps, bottleneck score 0.41"
    )
    assert "val  2.50 bits  graft " in event_line(event, BITS)


def test_where_less_is_better_the_lower_figure_wins() -> None:
    esper, control = (2.0, 2.1, 2.0), (2.5, 2.5, 2.5)
    assert compared(BITS, esper=esper, front_first=control).verdict(Arm.FRONT_FIRST).standing is Standing.WINS
    lines = list(verdict_lines(compared(BITS, esper=control, front_first=esper)))
    assert "esper beside front first: +0.467 ± 0.033 bits: this control wins, at 1.00x its FLOPs" in lines
    assert lines[-1] == "here esper loses to front first"


def test_every_measure_has_a_column_and_the_first_is_compared() -> None:
    text = shown(compared(BITS, ACCURACY, esper=(0.5, 0.7), static_small=(0.9, 0.9)))
    headings = re.split("  +", text.splitlines()[0].strip())
    assert headings == ["params", "test bits per character", "test accuracy", "training FLOPs", "esper beside it"]
    small = next(line for line in text.splitlines() if line.startswith("static small "))
    assert small.split()[2:] == ["10", "0.90", "±", "0.00", "90.0", "±", "0.0", "1.0x", "-0.300", "±", "0.100"]
