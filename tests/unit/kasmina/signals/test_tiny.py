"""TINY's residual, against SciPy and against a neuron that was planted."""

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper.kasmina.signals.activity import Seen
from esper.kasmina.signals.least_squares import RIDGE
from esper.kasmina.signals.tiny import NEURONS, activity, tiny_residual


def score_of(inputs: Tensor, outputs: Tensor, gradients: Tensor) -> float:
    return tiny_residual({"slot": Seen([inputs], [outputs], [gradients])}).read()["slot"]


def as_written(inputs: Tensor, outputs: Tensor, gradients: Tensor) -> float:
    """Follow the paper step by step: residual of the wish, S^(-1/2) N, its leading singular values."""
    x, y, wish = (tensor.double().numpy() for tensor in (inputs, outputs, gradients))
    x = np.hstack([x, np.ones((len(x), 1))])
    gram = x.T @ x
    residual = wish - x @ scipy.linalg.solve(gram + RIDGE * np.diag(gram).mean() * np.eye(len(gram)), x.T @ wish)
    scaled = y / np.sqrt(np.square(y).mean())
    read = scaled * scipy.special.ndtr(scaled)
    covariance = read.T @ read
    covariance += RIDGE * np.diag(covariance).mean() * np.eye(len(covariance))
    root = np.real(scipy.linalg.sqrtm(covariance))
    values = scipy.linalg.svd(scipy.linalg.inv(root) @ read.T @ residual, compute_uv=False)
    return float(np.square(values[:NEURONS]).sum() / np.square(wish).sum())


@given(seed=st.integers(0, 1000), rows=st.integers(40, 80), entered=st.integers(1, 6), left=st.integers(1, 24))
@settings(max_examples=30, deadline=None)
def test_the_score_is_the_papers_written_out(seed: int, rows: int, entered: int, left: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, entered, generator=generator)
    y, gradient = (torch.randn(rows, left, generator=generator) for _ in range(2))
    assert score_of(x, y, gradient) == pytest.approx(as_written(x, y, gradient), rel=1e-6)


def test_a_wish_for_one_neuron_is_taken_away_whole_and_one_for_noise_hardly() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 3, generator=generator)
    y = torch.randn(2000, 8, generator=generator)
    neuron = activity(y.double()) @ torch.randn(8, 1, dtype=torch.float64, generator=generator)
    planted = neuron @ torch.randn(1, 5, dtype=torch.float64, generator=generator)
    noise = torch.randn(2000, 5, generator=generator)
    # Its mean is what the layer's own bias can give; the rest is the neuron's.
    centred = planted - planted.mean(0)
    own = float(centred.square().sum() / planted.square().sum())
    assert score_of(x, y, planted) == pytest.approx(own, rel=0.05)
    assert score_of(x, y, noise) < 0.02


def test_what_a_layer_learns_by_itself_needs_no_neuron() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, 4, generator=generator)
    y = torch.randn(500, 6, generator=generator)
    assert score_of(x, y, x @ torch.randn(4, 6, generator=generator)) < 1e-4


def test_values_that_overflow_score_nothing() -> None:
    x = torch.randn(20, 3)
    assert score_of(x, x, x * float("inf")) == 0.0
    assert score_of(x, x * float("nan"), x.square()) == 0.0
