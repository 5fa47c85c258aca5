"""A text is scored as people of the field expect: bits of every next character, forecast from those before it alone."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.datasets import characters
from esper.demos.hosts import TransformerBlock, make_host
from esper.demos.measures import ACCURACY, BITS
from esper.demos.scoring import Part, losses, mean_loss, score
from esper.demos.tasks import CONTEXT, TASKS

SYMBOLS = len(characters().alphabet)


class Forecaster(nn.Module):
    """Names the same forecast everywhere."""

    def __init__(self, forecast: Tensor) -> None:
        super().__init__()
        self.forecast = forecast

    def forward(self, tokens: Tensor) -> Tensor:
        return self.forecast.expand(*tokens.shape, len(self.forecast))


def test_who_knows_nothing_needs_as_many_bits_as_the_alphabet_has() -> None:
    tokens = torch.arange(24).reshape(2, 12)
    found = score(Forecaster(torch.zeros(32)), Part(tokens, tokens))
    assert BITS.of(found) == pytest.approx(5)
    assert ACCURACY.of(found) == pytest.approx(1 / 24)


def test_losses_are_those_of_torch_position_by_position() -> None:
    torch.manual_seed(0)
    outputs, labels = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    each = torch.stack([F.cross_entropy(of, at, reduction="none") for of, at in zip(outputs, labels, strict=True)])
    torch.testing.assert_close(losses(outputs, labels), each.mean(dim=1))
    torch.testing.assert_close(mean_loss(outputs, labels), each.mean())
    torch.testing.assert_close(losses(outputs[:, 0], labels[:, 0]), each[:, 0])


def test_no_character_is_forecast_from_those_that_follow() -> None:
    torch.manual_seed(0)
    model = make_host("pydoc", seed=0)
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # a block that was just born adds nothing
    tokens = torch.randint(SYMBOLS, (1, CONTEXT))
    changed = tokens.clone()
    changed[0, 40] = (tokens[0, 40] + 1) % SYMBOLS
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:40], after[:40])
    assert all(not torch.equal(a, b) for a, b in zip(before[40:], after[40:], strict=True))


def test_a_block_is_born_as_the_identity() -> None:
    x = torch.randn(2, 8, 16)
    assert torch.equal(TransformerBlock(16)(x), x)


def test_labels_are_the_characters_that_follow_and_no_held_out_one_is_read_twice() -> None:
    splits = TASKS["pydoc"].load(0)
    for part in (splits.train, splits.validation, splits.test):
        assert (part.inputs[:, 1:] == part.labels[:, :-1]).all()
    test = characters().test
    assert splits.test.labels.size == (len(test) - 1) // CONTEXT * CONTEXT
    assert (splits.test.labels.reshape(-1) == test[1 : 1 + splits.test.labels.size]).all()
    assert math.log2(splits.num_classes) > 6
