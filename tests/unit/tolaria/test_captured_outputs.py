"""What a newborn is probed on is what its slot really returns, and looking at it changes nothing."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.kasmina import placement_of, wrap
from esper.services.tolaria.held_out import HeldOut
from esper.testing.zoo import ZOO


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_a_slot_on_torchs_fast_path_is_captured_without_leaving_it(padded: bool) -> None:
    host = ZOO["torch_transformer"]
    batch = host.batch()
    model = wrap(host.model(), example=batch.x)
    padding = torch.zeros(batch.x.shape, dtype=torch.bool)
    padding[0, 3:] = padded

    def validate(present: nn.Module) -> Tensor:
        logits = present(batch.x, padding if padded else None)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.target.reshape(-1), reduction="none")

    layer = placement_of(model).place("encoder.layers.0").module
    held_out = HeldOut(validate, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = held_out.measure(topology_version=0)
        measured = held_out.measure(topology_version=0, capture=layer)
    assert torch.equal(measured.losses, plain.losses)
    assert plain.seen is None
    assert measured.seen is not None
    for seen in (measured.seen.left, measured.seen.entered):
        assert seen is not None
        assert not seen.is_nested
        assert seen.shape == (6, 5, 16)
    assert bool((measured.seen.left[0, 3:] == 0).all()) is padded
    assert not layer._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks
