"""The model has the mean of its weights inside the block, and exactly its own after it."""

import torch
from torch import nn

from esper.kasmina.quiet import RandomState, capture_rng, preserved_rng, restore_rng
from esper.services.tolaria.averaging import AveragedWeights


def test_the_mean_is_applied_inside_and_gone_outside() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = AveragedWeights(model)
    seen = []
    for value in (1.0, 2.0, 6.0):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
            model[1].running_mean.fill_(value)
        average.update()
        seen.append(value)
    with average.applied():
        assert torch.equal(model[0].weight, torch.full((2, 2), 3.0))
        assert torch.equal(model[1].running_mean, torch.full((2,), 3.0))
    assert torch.equal(model[0].weight, torch.full((2, 2), 6.0))


def test_a_saved_mean_goes_on_as_if_it_had_never_stopped() -> None:
    model = nn.Linear(2, 2)
    first, second = AveragedWeights(model), AveragedWeights(model)
    first.update()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        model.weight.add_(1.0)
    first.update()
    second.update()
    with first.applied():
        expected = model.weight.clone()
    with second.applied():
        assert torch.equal(model.weight, expected)


def test_low_precision_weights_are_summed_in_float32() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    average = AveragedWeights(model)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for _ in range(1000):
        average.update()
    with average.applied():
        assert model.weight.item() == 1.0


def test_the_generators_are_left_as_they_were_found() -> None:
    state = capture_rng()
    with preserved_rng():
        torch.rand(3)
    assert torch.equal(capture_rng().cpu, state.cpu)
    again = RandomState.from_dict(state.to_dict())
    first = torch.rand(3)
    restore_rng(again)
    assert torch.equal(torch.rand(3), first)


def test_sums_from_a_file_lie_where_the_model_does() -> None:
    model = nn.Linear(2, 2)
    average = AveragedWeights(model)
    average.update()
    elsewhere = AveragedWeights(nn.Linear(2, 2, device="meta"))
    elsewhere.load_state_dict(average.state_dict())
    elsewhere.update()
    assert {total.device.type for total in elsewhere.state_dict()["sums"].values()} == {"meta"}
