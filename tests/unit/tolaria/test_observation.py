"""What a run sees of itself between two boundaries."""

import pytest
import torch

from esper.services.tolaria.observation import TrainingLoss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_mean_of_many_losses_is_right_in_every_type(dtype: torch.dtype) -> None:
    losses = TrainingLoss()
    for _ in range(1000):
        losses.add(torch.tensor(100.0, dtype=dtype))
    assert losses.take() == pytest.approx(100.0)
    assert losses.take() is None
