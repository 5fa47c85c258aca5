"""Committed rates are those that the grid makes best, never at its edge, tuned on seeds that are never reported."""

import pytest

from esper.demos.arms import Arm
from esper.demos.demo import Demo
from esper.demos.measures import ACCURACY, BITS
from esper.demos.rates import Choice, Point, tuning_of
from esper.demos.tasks import TASKS
from esper.demos.tune import NUM_TUNING_SEEDS
from esper.errors import ConfigError, NotFound


def grid(*pairs: tuple[float, float, float]) -> list[Point]:
    return [Point(*pair) for pair in pairs]


@pytest.mark.parametrize("task", TASKS)
def test_every_arm_has_a_rate_that_is_best_on_its_grid_and_not_at_its_edge(task: str) -> None:
    tuning = tuning_of(task)
    assert tuning.task == task
    assert set(tuning.arms) == set(Arm)
    for choice in tuning.arms.values():
        assert choice == Choice.among(choice.grid, TASKS[task].measure)
        assert choice.edge == 0


@pytest.mark.parametrize("task", TASKS)
def test_every_arm_was_tuned_with_equal_effort(task: str) -> None:
    tuning = tuning_of(task)
    assert len(tuning.seeds) == NUM_TUNING_SEEDS
    for choice in tuning.arms.values():
        assert set(TASKS[task].rates) <= {point.rate for point in choice.grid}


@pytest.mark.parametrize("task", TASKS)
def test_no_reported_seed_was_tuned_on(task: str) -> None:
    assert not set(tuning_of(task).seeds) & set(range(TASKS[task].num_seeds))
    with pytest.raises(ConfigError, match="were tuned on"):
        Demo(task, num_seeds=1001, root="nowhere")


def test_the_best_accuracy_is_chosen_and_the_lower_loss_among_equals() -> None:
    assert Choice.among(grid((0.1, 0.7, 0.9), (0.2, 0.8, 0.5), (0.4, 0.8, 0.4), (0.8, 0.6, 0.1)), ACCURACY).rate == 0.4


def test_a_text_is_tuned_by_its_loss() -> None:
    assert Choice.among(grid((0.1, 0.7, 0.9), (0.2, 0.8, 0.5), (0.4, 0.7, 0.4), (0.8, 0.6, 0.6)), BITS).rate == 0.4


def test_an_edge_is_seen_on_either_side() -> None:
    assert Choice.among(grid((0.1, 0.9, 0.1), (0.2, 0.8, 0.2)), ACCURACY).edge == -1
    assert Choice.among(grid((0.1, 0.8, 0.2), (0.2, 0.9, 0.1)), ACCURACY).edge == 1
    assert Choice.among(grid((0.1, 0.8, 0.2), (0.2, 0.9, 0.1), (0.4, 0.1, 0.1)), ACCURACY).edge == 0


def test_a_task_without_rates_says_how_to_choose_them() -> None:
    with pytest.raises(NotFound, match=r"python -m esper\.demos\.tune marbles"):
        tuning_of("marbles")
