"""A graft has no cache of its own, so that nothing that mixes tokens grows where a model decodes with one."""

import pytest
import torch
from torch import Tensor, nn

import esper
from esper.ir import Layout
from esper.kasmina import plan


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.linear(self.norm(x))
        return result


class Cached(Block):
    def forward(self, x: Tensor, past_key_values: list[Tensor] | None = None) -> Tensor:
        return super().forward(x)


class Language(nn.Module):
    def __init__(self, block: type[Block]) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(x)
        return result


IDS = torch.zeros(2, 6, dtype=torch.long)


@pytest.mark.parametrize(("block", "mixes"), [(Block, True), (Cached, False)])
def test_attention_is_offered_only_where_a_model_takes_no_cache(block: type[Block], mixes: bool) -> None:
    found = plan(Language(block), IDS)
    assert [place.name for place in found.places] == ["blocks.0", "blocks.1"]
    assert ("self_attention" in {graft.blueprint for graft in found.grafts}) is mixes
    assert "gated_mlp" in {graft.blueprint for graft in found.grafts}


def test_a_slot_that_is_named_with_its_layout_keeps_it() -> None:
    found = plan(Language(Cached), IDS, esper.Slot("blocks.0", layout=Layout.TOKENS))
    assert found.places[0].layout is Layout.TOKENS
