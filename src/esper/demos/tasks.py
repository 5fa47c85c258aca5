"""What the demos train: data, host, length and budget of each, without torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from esper.datasets import Splits, digits, spirals
from esper.errors import NotFound

QUICK_SHARE = 5
"""A quick demo trains for a fifth of the steps."""


@dataclass(frozen=True)
class Task:
    """One demo.

    Attributes:
        name: As users type it.
        about: What it shows, in one line.
        load: Makes the data of a seed.
        slots: Names of the host's slots.
        budget: How far the host may grow.
        batch_size: Examples in one optimizer step.
        steps: Optimizer steps of the arms that train for equal steps.
        every: Optimizer steps from one boundary to the next.
        num_seeds: Seeds that are reported unless a user asks for others.
    """

    name: str
    about: str
    load: Callable[[int], Splits]
    slots: tuple[str, ...]
    budget: str
    batch_size: int
    steps: int
    every: int
    num_seeds: int = 4

    def quick(self) -> "Task":
        """Return the same task with fewer steps: it shows how things work, and proves nothing."""
        return replace(self, steps=self.steps // QUICK_SHARE, every=max(1, self.every // QUICK_SHARE))


def _spirals(seed: int) -> Splits:
    return spirals(seed=seed, turns=2.25, noise=0.02, num_train=1000, num_validation=300, num_test=2000)


def _digits(seed: int) -> Splits:
    return digits(seed=seed, num_train=1000, num_validation=297)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="digits",
            about="scikit-learn's handwritten digits, a deliberately narrow convolutional host",
            load=_digits,
            slots=("stage1.0", "stage1.1", "stage2.0", "stage2.1"),
            budget="x4.4",
            batch_size=64,
            steps=240,
            every=12,
        ),
        Task(
            name="spirals",
            about="two spirals of two and a quarter turns, a perceptron of 114 parameters",
            load=_spirals,
            slots=("block1", "block2"),
            budget="x24",
            batch_size=128,
            steps=1200,
            every=30,
        ),
    )
}
"""The demos by name."""


def task_named(name: str) -> Task:
    """Return a demo.

    Raises:
        NotFound: If there is none of that name; the advice has the nearest one.
    """
    if name not in TASKS:
        near = get_close_matches(name, TASKS, n=1, cutoff=0.4)
        todo = f"Did you mean {near[0]}?" if near else ""
        raise NotFound(f"no demo {name!r}", why=f"demos are {', '.join(TASKS)}", todo=todo, code="ESP-5101")
    return TASKS[name]
