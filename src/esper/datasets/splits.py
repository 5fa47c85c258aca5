"""A data set cut into what is trained on, what is chosen by, and what is read once."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from esper.errors import ConfigError

Inputs: TypeAlias = NDArray[np.float32] | NDArray[np.int64]
"""Features, or tokens."""
Labels: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Inputs with their labels.

    Attributes:
        inputs: One row per example.
        labels: Class of each example, from 0; of a text, of each position.
    """

    inputs: Inputs
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def taken(self, rows: NDArray[Any]) -> "Examples":
        """Return some of the examples, in the order of ``rows``, as copies."""
        return Examples(self.inputs[rows], self.labels[rows])


@dataclass(frozen=True)
class Splits:
    """One data set in three parts without a common example.

    Attributes:
        train: What a model learns from.
        validation: What choices are made by.
        test: Read once, at the end.
        num_classes: Number of labels.
    """

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int


def split(examples: Examples, *, num_train: int, num_validation: int, num_classes: int, seed: int) -> Splits:
    """Cut examples into three disjoint parts, in an order drawn from ``seed``.

    Args:
        examples: All of them.
        num_train: How many are trained on.
        num_validation: How many choices are made by; the rest is the test part.
        num_classes: Number of labels.
        seed: Of the order; no global generator is touched.

    Raises:
        ConfigError: If a part would be empty.
    """
    left = len(examples) - num_train - num_validation
    if min(num_train, num_validation, left) < 1:
        raise ConfigError(
            f"{len(examples)} examples cannot be cut into {num_train} + {num_validation} + {left}",
            why="each part needs at least one",
            todo="ask for fewer training or validation examples",
            code="ESP-2401",
        )
    order = np.random.default_rng(seed).permutation(len(examples))
    train, validation, test = np.split(order, [num_train, num_train + num_validation])
    return Splits(examples.taken(train), examples.taken(validation), examples.taken(test), num_classes)
