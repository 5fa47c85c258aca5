"""Training FLOPs agree with sums written out by hand."""

import torch
from torch import Tensor

from esper.demos.flops import FlopMeter, forward_flops, step_flops
from esper.demos.hosts import make_host
from esper.demos.messages import Place
from esper.demos.training import graft_from_the_start
from esper.kasmina import detach, wrap

BATCH = 32
HELD_OUT = 50
PERCEPTRON = 2 * (2 * 8 + 8 * 8 + 8 * 2)
"""Forward FLOPs of the spirals' host for one point: three matrix products, a multiply-add as 2."""
PERCEPTRON_INPUTS = 2 * (8 * 8 + 8 * 2)
"""What the gradients of its layers' inputs take, the first layer's being not needed."""
GATED = 2 * (8 * 48 + 8 * 48 + 48 * 8)
"""Forward FLOPs of a gated perceptron of 48 units at 8 features."""


def spiral_batch(count: int = BATCH) -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, 2 * count).reshape(count, 2), torch.arange(count) % 2


def test_a_step_of_the_perceptron_costs_its_products_forward_and_backward() -> None:
    assert step_flops(make_host("spirals", seed=0), *spiral_batch()) == BATCH * (2 * PERCEPTRON + PERCEPTRON_INPUTS)


def test_a_graft_costs_three_times_its_forward_pass() -> None:
    model = make_host("spirals", seed=0)
    host = step_flops(model, *spiral_batch())
    wrap(model, slots=["block1"], example=spiral_batch()[0])
    graft_from_the_start(model, (Place("block1", 0, "gated_mlp"),))
    assert step_flops(model, *spiral_batch()) == host + 3 * BATCH * GATED


def test_a_forward_pass_of_the_convolutional_host_costs_its_convolutions() -> None:
    wide, narrow, taps = 8 * 8, 4 * 4, 9
    convolutions = wide * taps * (1 * 3 + 2 * 3 * 3) + narrow * taps * (3 * 4 + 2 * 4 * 4)
    images = torch.zeros(BATCH, 1, 8, 8)
    assert forward_flops(make_host("digits", seed=0), images) == 2 * BATCH * (convolutions + 4 * 10)


def test_counting_leaves_no_gradient_no_mode_and_no_random_number_behind() -> None:
    model = make_host("digits", seed=0).eval()
    before = torch.get_rng_state()
    step_flops(model, torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_steps_before_and_after_a_graft_are_charged_at_their_own_price_and_its_probe_once() -> None:
    model = make_host("spirals", seed=0)
    wrap(model, slots=["block1"], example=spiral_batch()[0])
    meter = FlopMeter(model, *spiral_batch(), held_out=spiral_batch(HELD_OUT)[0])
    small = BATCH * (2 * PERCEPTRON + PERCEPTRON_INPUTS)
    for _ in range(10):
        meter.step()
    graft_from_the_start(model, (Place("block1", 0, "gated_mlp"),))
    meter.changed()
    for _ in range(5):
        meter.step()
    detach(model, "block1", 0)
    meter.changed()
    meter.step()
    grown = small + 3 * BATCH * GATED
    assert meter.spent == 10 * small + HELD_OUT * GATED + 5 * grown + small
