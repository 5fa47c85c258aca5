"""Losses and metrics on batches of every form."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.errors import ConfigError
from esper.services.tolaria.trainer.batches import moved
from esper.services.tolaria.trainer.objective import METRICS, Objective

X = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
Y = torch.tensor([0, 0, 0])


class Named(nn.Module):
    """Takes its input by name and answers with logits, as transformers do."""

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=x)


def test_pairs_and_mappings_give_the_loss_that_torch_gives() -> None:
    wanted = functional.cross_entropy(X, Y, reduction="none")
    objective = Objective("cross_entropy", METRICS, target="labels")
    for model, batch in ((nn.Identity(), (X, Y)), (Named(), {"x": X, "labels": Y})):
        assert torch.equal(objective.held_out(model, batch), wanted)
        assert torch.equal(objective.training(model, batch), wanted.mean())
        assert objective.measured(model, batch)["accuracy"].tolist() == [1.0, 0.0, 1.0]


def test_classes_may_lie_first_or_last() -> None:
    logits, targets = torch.randn(4, 7, 3), torch.randint(3, (4, 7))
    wanted = functional.cross_entropy(logits.movedim(-1, 1), targets, reduction="none").mean(dim=1)
    objective = Objective("cross_entropy", METRICS, target="labels")
    last = objective.measured(nn.Identity(), (logits, targets))
    first = objective.measured(nn.Identity(), (logits.movedim(-1, 1), targets))
    for name in last:
        assert torch.allclose(last[name], first[name])
    assert torch.allclose(last["loss"], wanted)


def test_a_loss_of_ones_own_may_give_one_number_or_one_per_example() -> None:
    alone = Objective(lambda model, batch: model(batch).mean(), {}, target="labels")
    each = Objective(lambda model, batch: model(batch).square(), {}, target="labels")
    assert alone.held_out(nn.Identity(), X).tolist() == [pytest.approx(7 / 6)]
    assert each.held_out(nn.Identity(), X).tolist() == [2.0, 0.5, 5.0]


def test_metrics_stand_beside_a_loss_of_ones_own() -> None:
    def right(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(dim=1) == targets

    objective = Objective(lambda model, batch: model(batch[0]).sum(), {"right": right}, target="labels")
    assert objective.measured(nn.Identity(), (X, Y))["right"].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("batch", "word"),
    [((X, Y, X), "tuple of 3"), ({"x": X}, "mapping with x"), (X, "Tensor")],
    ids=["three", "key", "one"],
)
def test_a_batch_that_is_not_understood_is_refused(batch: Any, word: str) -> None:
    with pytest.raises(ConfigError, match=f"ESP-2701.*{word}"):
        Objective("cross_entropy", {}, target="labels").training(nn.Identity(), batch)


def test_what_is_no_loss_or_metric_is_refused() -> None:
    with pytest.raises(ConfigError, match="ESP-2702: loss returned a float"):
        Objective(lambda model, batch: 1.0, {}, target="labels").training(nn.Identity(), X)  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="ESP-2702: metric odd"):
        Objective("mse", {"odd": lambda o, t: 1.0}, target="labels").measured(nn.Identity(), (X, X))  # type: ignore[dict-item, return-value]


Pair = namedtuple("Pair", "left right")


def test_moving_keeps_the_kind_of_every_container() -> None:
    batch = {"a": [X, (Y, "text")], "b": Pair(X, None)}
    found = moved(batch, torch.device("meta"))
    assert found["a"][0].device.type == found["a"][1][0].device.type == found["b"].left.device.type == "meta"
    assert found["a"][1][1] == "text"
    assert isinstance(found["b"], Pair)
    assert found["b"].right is None
