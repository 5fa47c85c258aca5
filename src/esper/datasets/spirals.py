"""Two spirals: points on two arms that wind around each other."""

import numpy as np

from esper.datasets.splits import Examples, Splits, split
from esper.errors import ConfigError


def spirals(
    *,
    seed: int,
    turns: float = 2.0,
    noise: float = 0.03,
    num_train: int = 400,
    num_validation: int = 400,
    num_test: int = 1000,
) -> Splits:
    """Draw two spirals that wind around the origin, one rotated by half a turn against the other.

    A point at share ``t`` of its arm lies at radius ``t`` and angle ``2 pi turns t`` (plus ``pi`` on the second arm), and is
    then moved by Gaussian noise. Shares are drawn as ``sqrt(u)``, so that points lie equally dense along an arm.

    Args:
        seed: Of points, noise and split; no global generator is touched.
        turns: Turns of each arm.
        noise: Standard deviation of the noise, where the outermost point has radius 1.
        num_train: Points to train on.
        num_validation: Points to choose by.
        num_test: Points to read once.

    Returns:
        Points as rows of two coordinates, with label 0 or 1.

    Raises:
        ConfigError: If a part would be empty, or ``turns`` or ``noise`` is negative.

    References:
        Lang, Witbrock 1988, "Learning to Tell Two Spirals Apart".
    """
    if turns <= 0 or noise < 0:
        raise ConfigError(
            f"spirals with {turns:g} turns and noise {noise:g}", why="neither is negative", code="ESP-2402"
        )
    points_seed, split_seed = np.random.SeedSequence(seed).spawn(2)
    generator = np.random.default_rng(points_seed)
    count = num_train + num_validation + num_test
    labels = np.arange(count, dtype=np.int64) % 2
    share = np.sqrt(generator.uniform(size=count))
    angle = 2 * np.pi * turns * share + np.pi * labels
    arms = share[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    inputs = (arms + generator.normal(scale=noise, size=arms.shape)).astype(np.float32)
    order = int(split_seed.generate_state(1)[0])
    return split(
        Examples(inputs, labels), num_train=num_train, num_validation=num_validation, num_classes=2, seed=order
    )
