"""Friedman's first benchmark: a regression with interactions, a curve, straight lines, and inputs that say nothing."""

import numpy as np

from esper.datasets.splits import Inputs


def friedman(*, seed: int, count: int, noise: float = 1.0, num_inputs: int = 10) -> tuple[Inputs, Inputs]:
    """Draw y = 10 sin(pi x1 x2) + 20 (x3 - 1/2)^2 + 10 x4 + 5 x5 + noise, inputs uniform in [0, 1], the rest irrelevant.

    Args:
        seed: Of inputs and noise; no global generator is touched.
        count: Rows.
        noise: Standard deviation of the noise; without noise y deviates by about 4.9.
        num_inputs: Columns, at least 5.

    Returns:
        Inputs of shape (count, num_inputs), moved and scaled to mean 0 and deviation 1, and targets of shape (count,), taken
        about 14.4 and divided by 5.

    References:
        Friedman 1991, "Multivariate Adaptive Regression Splines", equation 56.
    """
    generator = np.random.default_rng(seed)
    x = generator.uniform(size=(count, num_inputs))
    y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y = y + noise * generator.standard_normal(count)
    return ((x - 0.5) * np.sqrt(12)).astype(np.float32), ((y - 14.4) / 5).astype(np.float32)
