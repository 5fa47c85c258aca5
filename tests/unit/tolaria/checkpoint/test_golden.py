"""What version 1 wrote stays loadable for ever; a new version adds its own folders beside these."""

import json
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper.kasmina import join, placement_of, topology
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint
from esper.services.tolaria.checkpoint.layout import STORED
from esper.services.tolaria.checkpoint.manifest import VERSION
from esper.services.tolaria.checkpoint.pretrained import VERSION as PRETRAINED_VERSION
from tests.laws.support import kernel_for
from tests.laws.training import equal

GOLDEN = Path(__file__).resolve().parents[3] / "golden"
CHECKPOINTS = sorted(GOLDEN.glob("checkpoint-*"))
MODELS = sorted(GOLDEN.glob("pretrained-*"))


def state() -> dict[str, Any]:
    """Return what the golden checkpoints hold: one of everything."""
    weight = torch.arange(12.0).reshape(3, 4)
    entries = [{"slot": "0", "seed_idx": 0, "kernel_id": "sha256:0", "blueprint": "none", "ir": "{}", "active": True}]
    return {
        "training": {"entries": entries, "tensors": {"a": weight, "tied": weight, "equal": weight.clone()}},
        "types": {str(dtype): torch.arange(4).to(dtype) for dtype in STORED},
        "images": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "keys": {0: "whole", ("a", 1): (1, [2.5, None]), None: True, "": -0.0},
        "values": [float("inf"), 2**70, "ü", False, np.float32(0.5)],
        "kinds": [Counter({3: 1}), OrderedDict([("b", 1), ("a", 2)]), np.arange(3)],
    }


def host() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def write() -> None:
    """Write the golden folders of this version; call it once for each version, and never again."""
    path = CheckpointManager(GOLDEN / "made").save(state(), step=120, metric=0.25, tag="before-graft")
    path.rename(GOLDEN / f"checkpoint-{VERSION}")
    torch.manual_seed(1)
    model = esper.wrap(host(), example=torch.rand(3, 4))
    slot = next(iter(placement_of(model).slots))
    data, kernel_id = kernel_for(model, slot, "gated_mlp")
    newborn = join(model, slot, 0, data, kernel_id=kernel_id, blueprint="gated_mlp")
    with torch.no_grad():
        for parameter in newborn.parameters.values():
            parameter += 0.1 * torch.randn(parameter.shape)
    folder = esper.save_pretrained(model, GOLDEN / f"pretrained-{PRETRAINED_VERSION}")
    outputs = model.eval()(torch.arange(8.0).reshape(2, 4)).tolist()
    (folder / "outputs.json").write_text(json.dumps(outputs))


def test_each_version_has_its_golden_folders() -> None:
    assert [path.name for path in CHECKPOINTS] == [f"checkpoint-{number}" for number in range(1, VERSION + 1)]
    assert [path.name for path in MODELS] == [f"pretrained-{number}" for number in range(1, PRETRAINED_VERSION + 1)]


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.name)
def test_a_golden_checkpoint_is_loaded_exactly(path: Path) -> None:
    found, wanted = read_checkpoint(path), state()
    np.testing.assert_array_equal(found["kinds"].pop(), wanted["kinds"].pop())
    assert equal(found, wanted)
    assert found["training"]["tensors"]["a"] is found["training"]["tensors"]["tied"]
    assert found["images"].stride() == wanted["images"].stride()


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_a_golden_model_is_loaded_and_computes_what_it_did(path: Path) -> None:
    model = esper.from_pretrained(path, base=host).eval()
    assert [entry.blueprint for entry in topology(model)] == ["gated_mlp"]
    wanted = torch.tensor(json.loads((path / "outputs.json").read_text()))
    torch.testing.assert_close(model(torch.arange(8.0).reshape(2, 4)), wanted, rtol=1e-5, atol=1e-6)
