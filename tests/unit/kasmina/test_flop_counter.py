"""What is counted while a model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina.flop_counter import FlopCounter
from esper.testing.zoo import ZOO

BATCH, HEADS, LENGTH, WIDTH = 2, 4, 16, 8
PRODUCT = 2 * BATCH * HEADS * LENGTH * LENGTH * WIDTH


def test_fused_attention_on_the_cpu_counts_its_two_products() -> None:
    query, key, value = (torch.randn(BATCH, HEADS, LENGTH, WIDTH) for _ in range(3))
    with FlopCounter() as fused:
        scaled_dot_product_attention(query, key, value)
    with FlopCounter() as plain, sdpa_kernel(SDPBackend.MATH):
        scaled_dot_product_attention(query, key, value)
    assert fused.total == plain.total == 2 * PRODUCT


def test_its_backward_pass_counts_the_four_products_and_the_one_that_it_repeats() -> None:
    inputs = [torch.randn(BATCH, HEADS, LENGTH, WIDTH, requires_grad=True) for _ in range(3)]
    with FlopCounter() as counter:
        torch.autograd.grad(scaled_dot_product_attention(*inputs).sum(), inputs)
    assert counter.total == (2 + 5) * PRODUCT


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_linear_map_counts_a_multiply_add_as_two_in_every_mode(mode: type[torch.no_grad]) -> None:
    with mode(), FlopCounter() as counter:
        linear(torch.randn(3, 5), torch.randn(7, 5), torch.randn(7))
    assert counter.total == 2 * 3 * 5 * 7


@pytest.mark.parametrize("name", sorted(ZOO))
def test_it_counts_a_training_step_as_torch_does(name: str) -> None:
    host = ZOO[name]
    model, batch = host.model(), host.batch()
    totals = []
    for counter in (FlopCounter(), FlopCounterMode(display=False)):
        with sdpa_kernel(SDPBackend.MATH), counter:
            host.loss(model, batch).backward()
        totals.append(counter.total if isinstance(counter, FlopCounter) else counter.get_total_flops())
    assert totals[0] == totals[1] > 0
