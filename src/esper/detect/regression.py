"""Whether losses lie lasting above where they lay before, with a bound on false alarms that no look at the data loosens."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Self

from esper.detect.scale import repeated_median_line

LENGTHS = (1, 2, 4, 8, 16)
"""Losses that are averaged into one block, so that blocks are nearly independent of each other."""
FEWEST_BLOCKS = 32
"""Fewer say too little about how often the threshold is passed by chance: the bound below would come near 1/2."""
LEVEL = 0.9
"""The threshold is this quantile of the blocks before."""
RELATED = 0.2
"""Blocks whose neighbours correlate by less count as independent; noise of 1/√32 is 0.18."""
RIVALS = 7
"""Rates of passing the threshold that the test bets on, evenly between the bound and 1."""


@dataclass
class RegressionTest:
    """A sequential test of blocks of losses against those before.

    A block that exceeds the threshold counts 1. Where nothing got worse that happens with a probability of at most ``bound``,
    except with half of the allowed false alarms as probability (order statistics of the blocks before follow a Beta
    distribution, whatever that of the losses). Against it stands a mixture of likelihood ratios, a supermartingale
    under every smaller probability, so that by Ville's inequality it ever passes 1/x with a probability of at most x.
    One starts at each window, the j-th with a share of 1/(j (j + 1)) of the other half, so that harm that sets in late
    is found as well. The rate is exact for independent blocks; tests measure it where losses correlate.

    Attributes:
        threshold: Above it a block counts.
        bound: Largest probability of that where nothing got worse.
        allowed: Probability with which the test may ever raise a false alarm.
        length: Losses in a block.
        windows: Blocks and exceedances between two looks.
        rest: Losses of a block that is not full.

    References:
        Ville 1939, "Étude critique de la notion de collectif"; Ramdas, Grünwald, Vovk and Shafer 2023, "Game-theoretic
        statistics and safe anytime-valid inference"; David and Nagaraja 2003, "Order Statistics", section 2.
    """

    threshold: float
    bound: float
    allowed: float
    length: int
    windows: list[list[int]] = field(default_factory=lambda: [[0, 0]])
    rest: list[float] = field(default_factory=list)

    @classmethod
    def against(cls, before: Sequence[float], *, allowed: float, margin_ratio: float = 0.0) -> Self | None:
        """Return a test against the losses before, or None where these are too few to tell.

        Args:
            before: Losses in order, finite.
            allowed: Probability with which it may ever raise a false alarm.
            margin_ratio: Rises by less than this share of the median loss do not count.
        """
        found = _blocks(before)
        if found is None:
            return None
        length, blocks = found
        count = len(blocks)
        rank = min(count, math.ceil(LEVEL * count))
        median = statistics.median(blocks)
        threshold = max(sorted(blocks)[rank - 1], median + margin_ratio * abs(median))
        return cls(threshold, _exceedance_bound(count, rank, allowed / 2), allowed, length)

    def observe(self, losses: Iterable[float]) -> None:
        """Take losses in; one that is not finite counts as infinite."""
        for loss in losses:
            self.rest.append(loss if math.isfinite(loss) else math.inf)
            if len(self.rest) == self.length:
                self.windows[-1][0] += 1
                self.windows[-1][1] += statistics.fmean(self.rest) > self.threshold
                self.rest.clear()

    def look(self) -> bool:
        """Tell whether it got worse, and begin the next window."""
        count = passed = 0
        alarm = False
        for start in range(len(self.windows), 0, -1):
            count, passed = count + self.windows[start - 1][0], passed + self.windows[start - 1][1]
            needed = math.log(2 / self.allowed * start * (start + 1))
            alarm = alarm or _log_evidence(count, passed, self.bound) >= needed
        self.windows.append([0, 0])
        return alarm

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read what ``to_dict`` returned."""
        return cls(**{**data, "windows": [list(window) for window in data["windows"]], "rest": list(data["rest"])})


def _blocks(losses: Sequence[float]) -> tuple[int, list[float]] | None:
    """Return the shortest blocks that hardly correlate, and their length, or None where there are too few of them."""
    for length in LENGTHS:
        first = len(losses) % length
        blocks = [statistics.fmean(losses[at : at + length]) for at in range(first, len(losses), length)]
        if len(blocks) < FEWEST_BLOCKS:
            return None
        if _correlation(blocks) < RELATED:
            return length, blocks
    return None


def _correlation(values: Sequence[float]) -> float:
    """Return how neighbours correlate once the trend is taken away."""
    intercept, slope = repeated_median_line(values)
    left = [value - intercept - slope * at for at, value in enumerate(values)]
    mean = statistics.fmean(left)
    square = sum((value - mean) ** 2 for value in left)
    return sum((a - mean) * (b - mean) for a, b in pairwise(left)) / square if square else 0.0


def _exceedance_bound(count: int, rank: int, risk: float) -> float:
    """Return what the chance of a value above the ``rank``-th of ``count`` is at most, except with probability ``risk``.

    That chance is distributed as Beta(count + 1 − rank, rank), whose tail is that of a binomial distribution.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(
            math.comb(count, hits) * middle**hits * (1 - middle) ** (count - hits) for hits in range(count + 1 - rank)
        )
        low, high = (middle, high) if tail > risk else (low, middle)
    return high


def _log_evidence(count: int, passed: int, bound: float) -> float:
    """Return the logarithm of the mean likelihood ratio of the rivals against the bound."""
    rivals = [bound + (1 - bound) * place / (RIVALS + 1) for place in range(1, RIVALS + 1)]
    ratios = [
        passed * math.log(rival / bound) + (count - passed) * math.log((1 - rival) / (1 - bound)) for rival in rivals
    ]
    largest = max(ratios)
    return largest + math.log(sum(math.exp(ratio - largest) for ratio in ratios) / RIVALS)
