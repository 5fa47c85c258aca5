"""Data sets are the same for the same seed, their parts have no example in common, and no global generator is touched."""

import sys

import numpy as np
import pytest

from esper.datasets import Splits, digits, spirals
from esper.errors import ConfigError


def parts_of(splits: Splits) -> list[np.ndarray]:
    return [part.inputs.reshape(len(part), -1) for part in (splits.train, splits.validation, splits.test)]


def test_without_noise_each_point_lies_on_the_arm_of_its_label() -> None:
    data = spirals(seed=3, turns=2.5, noise=0.0, num_train=200, num_validation=10, num_test=10).train
    radius = np.hypot(data.inputs[:, 0], data.inputs[:, 1])
    expected = 2 * np.pi * 2.5 * radius + np.pi * data.labels
    on_arm = np.stack([radius * np.cos(expected), radius * np.sin(expected)], axis=1)
    assert np.abs(on_arm - data.inputs).max() < 1e-5


def test_noise_has_the_asked_standard_deviation() -> None:
    sizes = {"num_train": 4000, "num_validation": 1, "num_test": 1}
    clean, noisy = (spirals(seed=1, noise=noise, **sizes).train.inputs for noise in (0.0, 0.05))
    assert (noisy - clean).std() == pytest.approx(0.05, rel=0.03)


def test_both_arms_have_equally_many_points() -> None:
    labels = np.concatenate([part.labels for part in vars(spirals(seed=0)).values() if hasattr(part, "labels")])
    assert np.bincount(labels).tolist() == [900, 900]


def test_the_digits_are_the_1797_images_of_scikit_learn_with_pixels_from_0_to_1() -> None:
    splits = digits(seed=0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1000, 297, 500]
    images = np.concatenate(parts_of(splits))
    labels = np.concatenate([splits.train.labels, splits.validation.labels, splits.test.labels])
    # Counts by digit, from the description that comes with the data.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert splits.train.inputs.shape == (1000, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    # Sum over all pixels of all images, in the data's own unit of sixteenths.
    assert round(float(images.sum(dtype=np.float64)) * 16) == 561718


def test_every_digit_is_in_exactly_one_part() -> None:
    from sklearn.datasets import load_digits

    whole = load_digits().data.astype(np.float32) / 16
    cut = np.concatenate(parts_of(digits(seed=7)))
    assert sorted(map(bytes, cut)) == sorted(map(bytes, whole))


def test_no_spiral_point_is_in_two_parts() -> None:
    points = np.concatenate(parts_of(spirals(seed=5)))
    assert len({bytes(point) for point in points}) == len(points) == 1800


def test_equal_seeds_give_equal_data_and_other_seeds_other_data() -> None:
    first, again, other = (spirals(seed=seed).train.inputs for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_split_of_the_digits_follows_the_seed() -> None:
    first, again, other = (digits(seed=seed).test.labels for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_global_generator_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()
    spirals(seed=0)
    digits(seed=0)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("sizes", [{"num_train": 1797}, {"num_train": 1500, "num_validation": 297}, {"num_train": 0}])
def test_a_part_that_would_be_empty_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="ESP-2401"):
        digits(seed=0, **sizes)


def test_spirals_that_do_not_turn_are_refused() -> None:
    with pytest.raises(ConfigError, match="ESP-2402"):
        spirals(seed=0, turns=0)


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "esper-morphogenesis\[demo\]"'):
        digits(seed=0)
