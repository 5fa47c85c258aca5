"""What the demos train: data, host, length and budget of each, without torch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import get_close_matches

from esper.datasets import Examples, Splits, characters, digits, spirals, windows
from esper.demos.measures import ACCURACY, BITS, Measure
from esper.errors import NotFound
from esper.ir import Layout

QUICK_SHARE = 5
"""A quick demo trains for a fifth of the steps."""
RATES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
"""Wide, because accuracy need not have one peak only: the small perceptron has two."""
CONTEXT = 64
"""Characters that the transformer sees."""


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
        measures: What is told of every arm; by the first they are compared, and rates are chosen.
        layout: Of what flows at the slots, where their layers do not tell.
        rates: Peak learning rates that every arm is first tried at.
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
    measures: tuple[Measure, ...] = (ACCURACY,)
    layout: Layout | None = None
    rates: tuple[float, ...] = RATES

    @property
    def measure(self) -> Measure:
        """What arms are compared by."""
        return self.measures[0]

    def quick(self) -> "Task":
        """Return the same task with fewer steps: it shows how things work, and proves nothing."""
        return replace(self, steps=self.steps // QUICK_SHARE, every=max(1, self.every // QUICK_SHARE))


def _spirals(seed: int) -> Splits:
    return spirals(seed=seed, turns=2.25, noise=0.02, num_train=1000, num_validation=300, num_test=2000)


def _digits(seed: int) -> Splits:
    return digits(seed=seed, num_train=1000, num_validation=297)


def _help_pages(_: int) -> Splits:
    """The text is the same for every seed; held-out passages do not overlap, and validation reads each sixth one."""
    text = characters()
    return Splits(
        Examples(*windows(text.train, length=CONTEXT, stride=CONTEXT // 4)),
        Examples(*windows(text.validation, length=CONTEXT, stride=6 * CONTEXT)),
        Examples(*windows(text.test, length=CONTEXT, stride=CONTEXT)),
        num_classes=len(text.alphabet),
    )


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
        Task(
            name="pydoc",
            about="Python's own help pages, character by character, a transformer of two blocks",
            load=_help_pages,
            slots=("block1", "block2"),
            budget="x2",
            batch_size=16,
            steps=600,
            every=30,
            measures=(BITS, ACCURACY),
            layout=Layout.TOKENS,
            rates=(0.002, 0.004, 0.008, 0.016, 0.032, 0.064),
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
