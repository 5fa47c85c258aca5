"""MNIST-1D: ten strokes of twelve points as noisy signals of forty, drawn anew for every seed."""

import numpy as np
from numpy.typing import NDArray

from esper.datasets.splits import Examples, Splits, split

LENGTH = 40
"""Samples of one signal."""
CANVAS = 72
"""Points that a stroke is drawn on before it is sampled down to ``LENGTH``."""
STROKES: NDArray[np.float64] = np.array(
    [
        [5.0, 6.0, 6.5, 6.75, 7.0, 7.0, 7.0, 7.0, 6.75, 6.5, 6.0, 5.0],
        [5.0, 3.0, 3.0, 3.4, 3.8, 4.2, 4.6, 5.0, 5.4, 5.8, 5.0, 5.0],
        [5.0, 6.0, 6.5, 6.5, 6.0, 5.25, 4.75, 4.0, 3.5, 3.5, 4.0, 5.0],
        [5.0, 6.0, 6.5, 6.5, 6.0, 5.0, 5.0, 6.0, 6.5, 6.5, 6.0, 5.0],
        [5.0, 4.4, 3.8, 3.2, 2.6, 2.6, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0],
        [5.0, 3.0, 3.0, 3.0, 3.0, 5.0, 6.0, 6.5, 6.5, 6.0, 4.5, 5.0],
        [5.0, 4.0, 3.5, 3.25, 3.0, 3.0, 3.0, 3.0, 3.25, 3.5, 4.0, 5.0],
        [5.0, 7.0, 7.0, 6.6, 6.2, 5.8, 5.4, 5.0, 4.6, 4.2, 5.0, 5.0],
        [5.0, 4.0, 3.5, 3.5, 4.0, 5.0, 5.0, 4.0, 3.5, 3.5, 4.0, 5.0],
        [5.0, 4.0, 3.5, 3.5, 4.0, 5.0, 5.0, 5.0, 5.0, 4.7, 4.3, 5.0],
    ]
)
"""The pen's sideways position along each digit (Greydanus 2020, figure 2), shape (10, 12)."""
HEIGHT = 1 / 6
"""Standard deviation of every stroke before it is stretched."""


def mnist1d(*, seed: int, num_train: int = 4000, num_validation: int = 1000, num_test: int = 4000) -> Splits:
    """Draw signals of ten classes: a digit's stroke, padded, stretched, moved, sheared and covered with noise.

    Args:
        seed: Of signals and split; no global generator is touched.
        num_train: Signals to train on.
        num_validation: Signals to choose by.
        num_test: Signals to read once.

    Returns:
        Signals of shape (40,) of mean 0 and deviation 1 over all, with labels 0 to 9.

    Raises:
        ConfigError: If a part would be empty.

    References:
        Greydanus 2020, "Scaling Down Deep Learning", arXiv 2011.14439.
    """
    drawing_seed, split_seed = np.random.SeedSequence(seed).spawn(2)
    generator = np.random.default_rng(drawing_seed)
    count = num_train + num_validation + num_test
    labels = np.arange(count, dtype=np.int64) % len(STROKES)
    strokes = (STROKES - STROKES[:, :1]) / STROKES.std(axis=1, keepdims=True) * HEIGHT
    signals = np.stack([_signal(strokes[label], generator) for label in labels])
    inputs = ((signals - signals.mean()) / signals.std()).astype(np.float32)
    order = int(split_seed.generate_state(1)[0])
    return split(
        Examples(inputs, labels), num_train=num_train, num_validation=num_validation, num_classes=10, seed=order
    )


def _signal(stroke: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    num_points = len(stroke) + int(generator.integers(36, 61))
    drawn = np.zeros(num_points)
    drawn[: len(stroke)] = stroke
    touched = np.zeros(num_points)
    touched[: len(stroke)] = 1.0
    moved = int(generator.integers(0, 48))
    drawn = np.roll(_resampled(drawn, CANVAS) * (1 + 0.4 * (generator.random() - 0.5)), moved)
    on_stroke = np.roll(_resampled(touched, CANVAS), moved) > 0
    noisy = np.where(on_stroke, drawn, 0.25 * _smooth(generator.standard_normal(CANVAS), deviation=2.0))
    noisy = noisy + 0.02 * generator.standard_normal(CANVAS)
    sheared = noisy - 0.75 * (generator.random() - 0.5) * np.linspace(-0.5, 0.5, CANVAS)
    return _resampled(sheared, LENGTH)


def _resampled(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(values)), values)


def _smooth(values: NDArray[np.float64], *, deviation: float) -> NDArray[np.float64]:
    reach = round(4 * deviation)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    return np.convolve(np.pad(values, reach, mode="reflect"), weights / weights.sum(), mode="valid")
