"""Generated data is drawn by its seed, and is what its paper describes."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import make_friedman1
from sklearn.neighbors import KNeighborsClassifier

from esper.datasets import characters, friedman, mnist1d, windows
from esper.errors import ConfigError

MNIST1D = Path(__file__).parents[4] / "shared" / "data" / "mnist1d.npz"


def test_signals_are_the_same_for_the_same_seed_and_leave_the_global_generator_alone() -> None:
    state = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    sizes = {"num_train": 60, "num_validation": 20, "num_test": 20}
    first, again, other = (mnist1d(seed=seed, **sizes) for seed in (3, 3, 4))
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]
    assert np.array_equal(first.train.inputs, again.train.inputs)
    assert not np.array_equal(first.train.inputs, other.train.inputs)
    assert first.train.inputs.shape == (60, 40)
    everything = np.concatenate([first.train.inputs, first.validation.inputs, first.test.inputs])
    assert (everything.mean(), everything.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))


@pytest.mark.skipif(not MNIST1D.is_file(), reason="the published MNIST-1D file is not here to compare with")
def test_the_signals_have_the_distribution_of_the_published_ones() -> None:
    published = np.load(MNIST1D)
    drawn = mnist1d(seed=0, num_train=4000, num_validation=10, num_test=1000)
    for share in (1, 10, 50, 90, 99):
        assert np.percentile(drawn.train.inputs, share) == pytest.approx(np.percentile(published["x"], share), abs=0.05)
    spectrum, theirs = (np.abs(np.fft.rfft(x, axis=1)).mean(axis=0) for x in (drawn.train.inputs, published["x"]))
    assert spectrum[1:] == pytest.approx(theirs[1:], rel=0.06)
    for label in range(10):
        ours, other = drawn.train.inputs[drawn.train.labels == label], published["x"][published["y"] == label]
        assert ours.std() == pytest.approx(other.std(), rel=0.05), label
    learner = KNeighborsClassifier(15).fit(_bag(drawn.train.inputs), drawn.train.labels)
    here, there = (
        learner.score(_bag(x), y)
        for x, y in ((drawn.test.inputs, drawn.test.labels), (published["x_test"], published["y_test"]))
    )
    assert there == pytest.approx(here, abs=0.05)


def _bag(signals: np.ndarray) -> np.ndarray:
    """Return what does not depend on where in a signal its stroke lies: sorted values and the amplitudes of its frequencies."""
    return np.concatenate([np.sort(signals, axis=1), np.abs(np.fft.rfft(signals, axis=1))], axis=1)


def test_friedman_is_the_function_of_scikit_learn() -> None:
    inputs, targets = friedman(seed=1, count=500, noise=0.0)
    x = inputs / np.sqrt(12) + 0.5
    reference = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    assert np.abs(targets * 5 + 14.4 - reference).max() < 1e-3
    _, theirs = make_friedman1(20000, random_state=0)
    _, ours = friedman(seed=2, count=20000, noise=0.0)
    assert (ours.mean() * 5 + 14.4, ours.std() * 5) == (
        pytest.approx(theirs.mean(), abs=0.15),
        pytest.approx(theirs.std(), rel=0.03),
    )


def test_a_text_is_cut_into_three_parts_that_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("abcd" * 25, encoding="utf-8")
    text = characters(path)
    assert text.alphabet == "abcd"
    assert [len(part) for part in (text.train, text.validation, text.test)] == [80, 10, 10]
    assert np.concatenate([text.train, text.validation, text.test]).tolist() == [0, 1, 2, 3] * 25
    passages, following = windows(text.train, length=5, stride=10)
    assert passages.shape == (8, 5)
    assert passages[1].tolist() == [2, 3, 0, 1, 2]
    assert (passages[:, 1:] == following[:, :-1]).all()


def test_without_a_file_the_text_is_pythons_own_help() -> None:
    text = characters()
    assert sum(len(part) for part in (text.train, text.validation, text.test)) > 300_000
    assert len(text.alphabet) < 200


def test_a_missing_or_too_short_text_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a UTF-8 text file"):
        characters(tmp_path / "none.txt")
    (tmp_path / "short.txt").write_text("abc", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be cut into three parts"):
        characters(tmp_path / "short.txt")
