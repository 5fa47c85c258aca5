"""Handwritten digits: 1,797 real images of 8x8 pixels that come with scikit-learn."""

import numpy as np

from esper.datasets.splits import Examples, Splits, split
from esper.errors import ConfigError

BRIGHTEST = 16.0
"""Pixels count from 0 to 16 (UCI "Optical Recognition of Handwritten Digits")."""


def digits(*, seed: int, num_train: int = 1000, num_validation: int = 297) -> Splits:
    """Return scikit-learn's digits as images of one channel with pixels from 0 to 1.

    Args:
        seed: Of the split; no global generator is touched.
        num_train: Images to train on.
        num_validation: Images to choose by; the rest is the test part.

    Returns:
        Images of shape (1, 8, 8) with labels 0 to 9.

    Raises:
        ConfigError: If scikit-learn is not installed, or a part would be empty.

    References:
        Alpaydin, Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "the digits cannot be read",
            why="they come with scikit-learn, which is not installed",
            todo='pip install "esper-morphogenesis[demo]"',
            code="ESP-2403",
        ) from error
    images, labels = load_digits(return_X_y=True)
    inputs = (np.asarray(images).reshape(-1, 1, 8, 8) / BRIGHTEST).astype(np.float32)
    examples = Examples(inputs, np.asarray(labels, dtype=np.int64))
    return split(examples, num_train=num_train, num_validation=num_validation, num_classes=10, seed=seed)
