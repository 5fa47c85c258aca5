"""Effective rank, against NumPy and against ranks that are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.kasmina.signals.activity import Seen
from esper.kasmina.signals.effective_rank import effective_rank, used_width


def with_rank(rank: int, rows: int = 60, channels: int = 12, seed: int = 0) -> torch.Tensor:
    """Return centred rows whose ``rank`` singular values are equal, and the rest nothing."""
    generator = torch.Generator().manual_seed(seed)
    centred = torch.randn(rows, channels, dtype=torch.float64, generator=generator)
    left, _, right = torch.linalg.svd(centred - centred.mean(0), full_matrices=False)
    return left[:, :rank] @ right[:rank]


@pytest.mark.parametrize("rank", [1, 2, 5, 12])
def test_activity_of_rank_k_has_effective_rank_k(rank: int) -> None:
    # A singular value is the root of an eigenvalue that is known to 1e-16 of the largest.
    assert float(effective_rank(with_rank(rank))) == pytest.approx(rank, rel=1e-5)
    assert used_width({"slot": Seen(outputs=[with_rank(rank) + 3.0])}).read()["slot"] == pytest.approx(
        rank / 12, rel=1e-5
    )


@given(seed=st.integers(0, 1000), rows=st.integers(3, 30), channels=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_it_is_the_entropy_of_the_singular_values_written_out(seed: int, rows: int, channels: int) -> None:
    drawn = torch.randn(rows, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    singular = np.linalg.svd(drawn.numpy(), compute_uv=False)
    share = singular[singular > 0] / singular.sum()
    assert float(effective_rank(drawn)) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_what_does_not_vary_or_overflows_has_no_rank() -> None:
    constant = torch.full((20, 4), 3.0)
    assert used_width({"slot": Seen(outputs=[constant])}).read() == {"slot": 0.0}
    assert used_width({"slot": Seen(outputs=[constant * float("inf")])}).read() == {"slot": 0.0}
