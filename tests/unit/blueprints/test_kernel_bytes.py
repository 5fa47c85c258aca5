"""Kernels as bytes: equal every time, verified before they are parsed, refused when anything is wrong."""

import json
import pickle
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from esper.blueprints import OP_LIBRARY, initial_state, load_kernel, pack_kernel, unpack_kernel
from esper.errors import ConfigError, ContractError, InvalidBlueprint, KernelRejected
from esper.ir import REGISTRY, BlueprintIR, Layout, Site, digest_of
from esper.testing.blueprints import blueprints

SITE = Site(Layout.CHANNELS_2D, 8, (6, 5))
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def gated() -> BlueprintIR:
    return REGISTRY.build("gated_conv", SITE)


def packed(seed: int = 3, dtype: str = "float32") -> bytes:
    return pack_kernel(gated(), initial_state(gated(), seed=seed, dtype=dtype), seed=seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kernel_comes_back_to_the_bit(dtype: str) -> None:
    state = initial_state(gated(), seed=3, dtype=dtype)
    kernel = unpack_kernel(packed(dtype=dtype))
    assert (kernel.ir, kernel.seed, kernel.dtype, kernel.op_library) == (gated(), 3, dtype, OP_LIBRARY)
    assert list(kernel.state) == list(state) or set(kernel.state) == set(state)
    assert all(torch.equal(kernel.state[name], state[name]) for name in state)
    module = load_kernel(packed(dtype=dtype), digest=digest_of(packed(dtype=dtype)))
    assert list(module.state_dict()) == list(state)


def test_equal_arguments_give_equal_bytes_and_others_give_others() -> None:
    assert packed() == packed()
    assert len({packed(), packed(seed=4), packed(dtype="bfloat16")}) == 3


def test_the_bytes_of_a_known_kernel_never_change() -> None:
    """A golden digest: who changes it has changed what stored kernels are called, and raises OP_LIBRARY."""
    ir = BlueprintIR.from_json(GOLDEN_IR)
    assert ir.digest == "sha256:edc36aa0fd90c0525a36e2e373dd4cc573120850397f0dcff0ad831bd6a9231c"
    data = pack_kernel(ir, initial_state(ir, seed=7, dtype="float32"), seed=7)
    assert digest_of(data) == "sha256:5bb2ed98c9f6507a7968ea17a3aa23e33d4154afc5758126419918d8ff5ede3d"


GOLDEN_IR = json.dumps(
    {
        "name": "golden",
        "version": 1,
        "layout": "features",
        "channels": 3,
        "nodes": [
            {"id": "widen", "op": "linear", "inputs": ["input"], "attrs": {"out": 5}},
            {"id": "bend", "op": "gelu", "inputs": ["widen"]},
            {"id": "narrow", "op": "linear", "inputs": ["bend"], "attrs": {"out": 3, "init": "zero"}},
        ],
        "output": "narrow",
    }
)


def test_the_name_of_a_blueprint_is_not_in_its_kernel() -> None:
    twin = BlueprintIR("twin", gated().layout, gated().channels, gated().nodes, gated().output)
    assert pack_kernel(twin, initial_state(twin, seed=3, dtype="float32"), seed=3) == packed()


@given(ir=blueprints(), seed=st.integers(0, 2**63 - 1), dtype=st.sampled_from(DTYPES))
@settings(max_examples=40, deadline=None)
def test_any_blueprint_makes_the_journey(ir: BlueprintIR, seed: int, dtype: str) -> None:
    state = initial_state(ir, seed=seed, dtype=dtype)
    kernel = unpack_kernel(pack_kernel(ir, state, seed=seed))
    assert (kernel.ir, kernel.seed) == (ir, seed)
    assert kernel.state.keys() == state.keys()
    assert all(torch.equal(kernel.state[name], state[name]) for name in state)


def test_tensors_of_a_kernel_do_not_share_memory() -> None:
    state = unpack_kernel(packed()).state
    addresses = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    assert len(addresses) == len(state)
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())


def test_a_wrong_digest_is_refused_before_anything_is_parsed() -> None:
    with pytest.raises(KernelRejected, match="its bytes have the digest"):
        load_kernel(b"\xff" * 64, digest=digest_of(packed()))
    flipped = bytearray(packed())
    flipped[-1] ^= 1
    with pytest.raises(KernelRejected, match="its bytes have the digest"):
        load_kernel(bytes(flipped), digest=digest_of(packed()))


def with_record(**changes: object) -> bytes:
    state = initial_state(gated(), seed=3, dtype="float32")
    record = {
        "format": "esper-kernel-1",
        "ir": json.loads(gated().canonical()),
        "seed": 3,
        "dtype": "float32",
        "op_library": OP_LIBRARY,
    } | changes
    return save(state, metadata={"esper": json.dumps(record)})


def with_tensor(name: str, value: torch.Tensor) -> bytes:
    state = initial_state(gated(), seed=3, dtype="float32") | {name: value}
    header = json.loads(packed()[8 : 8 + struct.unpack("<Q", packed()[:8])[0]])
    return save(state, metadata=header["__metadata__"])


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "header"),
    "noise": (lambda: bytes(range(256)), "header"),
    "a header that is too long": (lambda: struct.pack("<Q", 2**63) + b"{}", "header"),
    "a header that is no JSON": (lambda: struct.pack("<Q", 2) + b"[}", "record"),
    "a header nested too deep": (lambda: struct.pack("<Q", 200_000) + b"[" * 200_000, "record"),
    "another file": (lambda: save({"w": torch.zeros(2)}), "record"),
    "a truncated file": (lambda: packed()[:-4], "Buffer|buffer|Incomplete|incomplete|Metadata"),
    "a longer file": (lambda: packed() + b"0000", "Buffer|buffer|Incomplete|incomplete|Metadata"),
    "another format": (lambda: with_record(format="esper-kernel-9"), "format"),
    "an unknown field": (lambda: with_record(code="import os"), "format"),
    "operations of tomorrow": (lambda: with_record(op_library=OP_LIBRARY + 1), "version"),
    "a false dtype": (lambda: with_record(dtype="float64"), "its record says float64"),
    "a seed that is none": (lambda: with_record(seed="3"), "seed"),
    "a negative seed": (lambda: with_record(seed=-1), "seed"),
    "a missing shape": (lambda: with_tensor("conv3.bias", torch.zeros(9)), "shape"),
    "an extra tensor": (lambda: with_tensor("conv9.bias", torch.zeros(8)), "missing or extra"),
    "integers": (lambda: with_tensor("conv3.bias", torch.zeros(8, dtype=torch.int32)), "I32"),
    "an empty tensor": (lambda: with_tensor("conv3.bias", torch.zeros(0)), "empty"),
    "mixed types": (lambda: with_tensor("conv3.bias", torch.zeros(8, dtype=torch.float64)), "type"),
    "not a number": (lambda: with_tensor("conv3.bias", torch.full((8,), float("nan"))), "not finite"),
    "infinity": (lambda: with_tensor("conv3.weight", torch.full((8, 16, 1, 1), float("inf"))), "not finite"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_not_a_sound_kernel_is_refused_with_the_reason(case: str) -> None:
    make, reason = HOSTILE[case]
    data = make()
    with pytest.raises(KernelRejected, match=reason):
        load_kernel(data, digest=digest_of(data))


def test_a_kernel_of_an_invalid_blueprint_is_refused_with_its_path() -> None:
    ir = json.loads(gated().canonical())
    ir["nodes"][0]["op"] = "eval"
    with pytest.raises(InvalidBlueprint) as refused:
        unpack_kernel(with_record(ir=ir))
    assert refused.value.path == "$.nodes[0].op"


@given(data=st.binary(max_size=200), at=st.integers(0, 2**20))
@settings(max_examples=150, deadline=None)
def test_no_bytes_raise_anything_but_a_refusal(data: bytes, at: int) -> None:
    whole = packed()
    spliced = whole[: at % len(whole)] + data + whole[at % len(whole) + len(data) :]
    for candidate in (data, spliced):
        try:
            unpack_kernel(candidate)
        except (KernelRejected, InvalidBlueprint):
            continue


def test_weights_are_spread_as_their_fan_in_asks() -> None:
    ir = REGISTRY.build("gated_conv", Site(Layout.CHANNELS_2D, 32))
    state = initial_state(ir, seed=0, dtype="float64")
    bound = 1.0 / (32 * 9) ** 0.5
    weight = state["conv1.weight"]
    assert bound * 0.99 < float(weight.abs().max()) <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert abs(float(weight.mean())) < 0.02 * bound
    assert float(state["conv1.bias"].abs().max()) <= bound
    assert not state["conv3.weight"].any()
    assert not state["conv3.bias"].any()
    assert (state["group_norm1.weight"] == 1).all()


def test_tensors_differ_from_each_other_and_from_seed_to_seed() -> None:
    first, second = (initial_state(gated(), seed=seed, dtype="float32") for seed in (0, 1))
    assert not torch.equal(first["conv1.weight"], first["conv2.weight"])
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


def test_a_tensor_does_not_depend_on_what_else_a_blueprint_has() -> None:
    narrow = BlueprintIR.from_json(GOLDEN_IR)
    longer = json.loads(GOLDEN_IR)
    longer["nodes"].insert(0, {"id": "norm", "op": "rms_norm", "inputs": ["input"]})
    longer["nodes"][1]["inputs"] = ["norm"]
    wide = BlueprintIR.from_json(longer)
    one, other = (initial_state(ir, seed=5, dtype="float32")["widen.weight"] for ir in (narrow, wide))
    assert torch.equal(one, other)


def test_a_negative_seed_and_an_unknown_type_are_refused() -> None:
    with pytest.raises(ContractError, match="seed"):
        initial_state(gated(), seed=-1, dtype="float32")
    with pytest.raises(ConfigError, match="int8"):
        initial_state(gated(), seed=0, dtype="int8")
    with pytest.raises(ConfigError, match="int8"):
        initial_state(gated(), seed=0, dtype=torch.int8)


def test_law_8_making_packing_and_building_kernels_leaves_every_global_generator_alone() -> None:
    before = (torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate())
    module = load_kernel(packed(), digest=digest_of(packed()))
    module(torch.ones(2, 8, 6, 5)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pickle.dumps(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]


def test_a_default_device_or_type_of_the_user_changes_nothing() -> None:
    expected = initial_state(gated(), seed=3, dtype="float32")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = unpack_kernel(packed()).state
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
