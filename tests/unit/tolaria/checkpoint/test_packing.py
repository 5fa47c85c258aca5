"""Whatever is plain comes back exactly: kinds of containers, keys, numbers, strides, ties."""

import json
import math
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.errors import ConfigError, ContractError
from esper.services.tolaria.checkpoint import CheckpointManager, read_checkpoint
from esper.services.tolaria.checkpoint.layout import STORED
from esper.services.tolaria.checkpoint.packing import pack, unpack
from tests.laws.training import equal


def through(state: Any, folder: Path, *, blocking: bool = True) -> Any:
    """Write a state and read it back."""
    with CheckpointManager(folder) as manager:
        manager.save({"state": state}, step=0, blocking=blocking)
        return manager.load()["state"]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
KEYS = st.text(max_size=3) | st.integers() | st.tuples(st.integers(), st.text(max_size=2)) | st.none() | st.booleans()
NESTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(NESTS)
def test_every_nest_of_plain_containers_comes_back_exactly(state: Any) -> None:
    packed = pack(state)
    text = json.dumps(packed.tree, allow_nan=False)
    assert equal(unpack(json.loads(text), []), state)


@pytest.mark.parametrize("blocking", [True, False])
def test_every_type_of_tensor_comes_back_to_the_bit(tmp_path: Path, blocking: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 2, (16 * 6,), dtype=torch.uint8, generator=generator)
    state = {str(dtype): raw.clone()[: 6 * dtype.itemsize].view(dtype).reshape(2, 3) for dtype in STORED}
    state["none"] = torch.empty(0, 3)
    state["scalar"] = torch.tensor(7)
    assert equal(through(state, tmp_path, blocking=blocking), state)


@pytest.mark.parametrize("blocking", [True, False])
def test_memory_formats_and_strides_are_kept(tmp_path: Path, blocking: bool) -> None:
    base = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    state = {
        "channels_last": base.to(memory_format=torch.channels_last),
        "one_by_one": torch.rand(4, 3, 1, 1).to(memory_format=torch.channels_last),
        "transposed": base[0, 0].t(),
        "complex": torch.rand(3, 2, dtype=torch.complex64).t(),
        "volume": torch.rand(1, 2, 3, 4, 5).to(memory_format=torch.channels_last_3d),
    }
    loaded = through(state, tmp_path, blocking=blocking)
    assert equal(loaded, state)
    assert {name: t.stride() for name, t in loaded.items()} == {name: t.stride() for name, t in state.items()}


def test_slices_and_expanded_tensors_are_stored_without_what_surrounds_them(tmp_path: Path) -> None:
    state = {"slice": torch.rand(1000, 1000)[:3, 5:7], "expanded": torch.rand(4, 1).expand(4, 9)}
    assert equal(through(state, tmp_path), state)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 1000


def test_values_that_are_not_finite_come_back_to_the_bit(tmp_path: Path) -> None:
    odd = torch.tensor([0x7FC00001, -1, -(2**31), 0x7F800000], dtype=torch.int32).view(torch.float32)
    loaded = through({"tensor": odd, "inf": -math.inf, "nan": math.nan, "zero": -0.0}, tmp_path)
    assert torch.equal(loaded["tensor"].view(torch.int32), odd.view(torch.int32))
    assert loaded["inf"] == -math.inf
    assert math.isnan(loaded["nan"])
    assert math.copysign(1, loaded["zero"]) == -1


def test_counters_ordered_dicts_and_numpy_values_keep_their_kind(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "milestones": Counter({3: 1, 9: 2}),
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "scalar": np.float32(0.1),
        "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
        "bits": np.random.default_rng(3).bit_generator.state,
    }
    loaded = through(state, tmp_path)
    assert {key: type(value) for key, value in loaded.items()} == {key: type(value) for key, value in state.items()}
    assert loaded["scalar"].dtype == np.float32
    np.testing.assert_array_equal(loaded.pop("array"), state.pop("array"))
    assert loaded == state


@pytest.mark.parametrize("blocking", [True, False])
def test_tied_tensors_are_stored_once_and_stay_tied_and_equal_ones_stay_apart(tmp_path: Path, blocking: bool) -> None:
    weight = torch.rand(100, 10)
    state = {"embedding": weight, "head": nn.Parameter(weight), "copy": weight.clone(), "part": weight[:2]}
    loaded = through(state, tmp_path, blocking=blocking)
    assert loaded["embedding"] is loaded["head"]
    loaded["embedding"].zero_()
    assert torch.equal(loaded["copy"], weight)
    assert torch.equal(loaded["part"], weight[:2])
    [file] = tmp_path.rglob("*.safetensors")
    stored = load_file(file)
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == {
        "state.embedding": (100, 10),
        "state.part": (2, 10),
    }


class Odd:
    """No plain container."""


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Odd(), "Odd is no plain"),
        ({1, 2}, "set is no plain"),
        (torch.rand(2, 2).to_sparse(), "no plain memory"),
        (torch.empty(2, device="meta"), "no plain memory"),
        (10**5000, "too long"),
        (np.array(["a"]), "cannot be a tensor"),
    ],
    ids=["object", "set", "sparse", "meta", "digits", "text"],
)
def test_what_is_not_plain_is_refused_with_its_place(value: object, why: str, tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    with pytest.raises(ConfigError, match=rf"state\.a\.0.*{why}"):
        manager.save({"state": {"a": [value]}}, step=0)
    assert not manager.paths()


def test_a_container_in_itself_is_refused() -> None:
    state: list[Any] = []
    state.append(state)
    with pytest.raises(ConfigError, match="contains itself"):
        pack(state)


@pytest.mark.parametrize("tree", [{"odd": 1}, {"tensor": 3}, {"float": "1"}, {"tuple": 3}, {}, {"dict": {}, "x": 1}])
def test_a_tree_that_nobody_wrote_is_refused(tree: object) -> None:
    with pytest.raises(ContractError, match="structure"):
        unpack(tree, [])


def test_keys_with_dots_and_of_safetensors_itself_do_not_collide(tmp_path: Path) -> None:
    tensors: dict[str, Any] = {"a.b": torch.rand(2), "a": {"b": torch.rand(2)}, "__metadata__": torch.rand(3)}
    path = CheckpointManager(tmp_path).save(tensors, step=1)
    assert equal(read_checkpoint(path), tensors)
    assert all(isinstance(tensor, Tensor) for tensor in load_file(path / "tensors.safetensors").values())
