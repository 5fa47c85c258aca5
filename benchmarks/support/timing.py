"""Timing side by side on a machine that others use too."""

import gc
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns

Work = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """How often and how long.

    Attributes:
        rounds: Fresh sets of arms; each draws its places in memory anew, which alone moves a time by a percent or two.
        turns: Samples of every arm in a round.
        sample_s: Shortest sample; an arm is repeated within a sample until it takes so long.
        seed: Of the order in which arms take their turns.
    """

    rounds: int
    turns: int
    sample_s: float
    seed: int


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the garbage collector out of a measurement."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def interleaved(make: Callable[[int], Mapping[str, Work]], plan: Plan) -> dict[str, list[float]]:
    """Time several arms turn by turn.

    Args:
        make: Returns fresh arms for the index of a round.
        plan: How often.

    Returns:
        CPU seconds of one call for each arm, equally many and in the same order, so that they can be paired.
    """
    dice = random.Random(plan.seed)
    times: dict[str, list[float]] = {}
    for index in range(plan.rounds):
        arms = dict(make(index))
        repeats = _repeats(arms, plan.sample_s)
        with undisturbed():
            for _ in range(plan.turns):
                for name in dice.sample(sorted(arms), len(arms)):
                    times.setdefault(name, []).append(_sample(arms[name], repeats))
    return times


def paired_ratio(times: Mapping[str, list[float]], arm: str, base: str) -> float:
    """Return the median of arm over base, turn by turn."""
    return statistics.median(one / other for one, other in zip(times[arm], times[base], strict=True))


def in_turn(works: Mapping[str, Work], *, samples: int) -> dict[str, float]:
    """Run several things one after the other, again and again, and return the median wall seconds of each.

    Args:
        works: What to run, in this order: each may undo what the one before did.
        samples: How often; one turn before them warms up.
    """
    taken: dict[str, list[int]] = {name: [] for name in works}
    with undisturbed():
        for turn in range(samples + 1):
            for name, work in works.items():
                start = perf_counter_ns()
                work()
                if turn:
                    taken[name].append(perf_counter_ns() - start)
    return {name: statistics.median(times) / 1e9 for name, times in taken.items()}


def _repeats(arms: Mapping[str, Work], sample_s: float) -> int:
    """Return how many calls fill a sample; the calls made here also warm every arm up."""
    repeats = 1
    while min(_sample(work, repeats) for work in arms.values()) * repeats < sample_s:
        repeats *= 2
    return repeats


def _sample(work: Work, repeats: int) -> float:
    """Return CPU seconds of one call: time in which others had the core does not count."""
    start = process_time_ns()
    for _ in range(repeats):
        work()
    return (process_time_ns() - start) / 1e9 / repeats
