"""What a level made is loaded with a seal that holds, or not parsed at all."""

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import onnx
import pytest
import torch

from esper.blueprints.kernel import Kernel
from esper.blueprints.weights import initial_state
from esper.contracts.kernel import InferenceArtifact
from esper.errors import KernelRejected
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.inference import backends
from esper.services.tezzeret.inference.backends import BACKENDS, load
from esper.services.tezzeret.inference.forms import inference_form
from esper.services.tezzeret.inference.fusion import fuse
from esper.services.tezzeret.inference.opening import device_of, opened
from esper.services.tezzeret.inference.sealing import Sealer
from esper.signing.keys import KeyRing, SigningKey, fingerprint
from esper.signing.manifest import Manifest, manifest_from_bytes, manifest_to_bytes
from esper.signing.sealed import HEAD
from esper.testing.clock import ManualClock
from esper.testing.forging import adapter

IR = adapter()
TRIAL = Trial(Kernel(IR, initial_state(IR, seed=0, dtype="float32"), 0, "float32", 1), ValidatorConfig())
STATE = fuse(IR, TRIAL.kernel.state).state
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
RING = KeyRing().trust(KEY.public, name="forge")
NOW_S = 1_800_000_000.0
PREFIX = len(HEAD) + 32
MANIFEST_AT = PREFIX + 64
MADE = {name: inference_form(TRIAL, BACKENDS[name]) for name in ("eager", "onnx", "torchscript")}
SEALS = {
    name: Sealer(KEY, ManualClock(NOW_S)).seal(made.form, made.data, IR.digest) for name, made in MADE.items()
}  # fmt: skip


def brought(made: InferenceArtifact, sealed: bytes, *, data: bytes | None = None, ring: KeyRing = RING) -> object:
    """Bring a form from the store to a program, as whoever runs it does."""
    found = opened(made.form, sealed, made.data if data is None else data, IR.digest, ring, ManualClock(NOW_S + 60))
    return load(found, STATE)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what any parser of any backend was handed."""
    seen: list[object] = []

    def recording(parse: Callable[..., Any]) -> Callable[..., Any]:
        def record(source: Any, *rest: Any, **more: Any) -> Any:
            seen.append(source)
            return parse(source, *rest, **more)

        return record

    monkeypatch.setattr(onnx, "load_from_string", recording(onnx.load_from_string))
    monkeypatch.setattr(torch.jit, "load", recording(torch.jit.load))
    monkeypatch.setattr(torch._inductor, "aoti_load_package", recording(torch._inductor.aoti_load_package))
    monkeypatch.setattr(backends, "unpack_kernel", recording(backends.unpack_kernel))
    return seen


@pytest.mark.parametrize("backend", MADE)
def test_a_sealed_form_is_parsed_and_runs(backend: str, parsed: list[object]) -> None:
    program: Any = brought(MADE[backend], SEALS[backend])
    assert program(torch.ones(2, 8)).shape == (2, 8)
    assert len(parsed) == 1


@pytest.mark.parametrize("field", Manifest.__struct_fields__)
@pytest.mark.parametrize("backend", MADE)
def test_a_field_that_was_changed_keeps_every_parser_away(backend: str, field: str, parsed: list[object]) -> None:
    sealed = SEALS[backend]
    value = getattr(manifest_from_bytes(sealed[MANIFEST_AT:]), field)
    changed: object = value + timedelta(1) if isinstance(value, datetime) else value * 2
    manifest = msgspec.structs.replace(manifest_from_bytes(sealed[MANIFEST_AT:]), **{field: changed})
    with pytest.raises(KernelRejected, match="ESP-7253"):
        brought(MADE[backend], sealed[:MANIFEST_AT] + manifest_to_bytes(manifest))
    assert parsed == []


def resigned(backend: str, key: SigningKey = KEY, **changes: object) -> bytes:
    """Return a seal of a manifest that says something else, signed all the same."""
    manifest = msgspec.structs.replace(manifest_from_bytes(SEALS[backend][MANIFEST_AT:]), **changes)
    head, told = HEAD + fingerprint(key.public), manifest_to_bytes(manifest)
    return head + key.sign(head + told) + told


UNFIT: dict[str, dict[str, object]] = {
    "version": {"version": 2},
    "kind": {"kind": "aotinductor"},
    "digest": {"digest": "sha256:" + "0" * 64},
    "size": {"size": 1},
    "blueprint": {"blueprint": adapter(5).digest},
    "device": {"device": "cuda:0"},
    "created": {"created": datetime(2099, 1, 1, tzinfo=UTC)},
}


@pytest.mark.parametrize("field", UNFIT)
@pytest.mark.parametrize("backend", MADE)
def test_a_true_seal_that_says_something_else_keeps_every_parser_away(
    backend: str, field: str, parsed: list[object]
) -> None:
    with pytest.raises(KernelRejected):
        brought(MADE[backend], resigned(backend, **UNFIT[field]))
    assert parsed == []


def test_machine_code_of_another_torch_is_not_loaded(parsed: list[object]) -> None:
    made = MADE["onnx"].model_copy(update={"form": MADE["onnx"].form.model_copy(update={"backend": "aotinductor"})})
    with pytest.raises(KernelRejected, match="ESP-7260"):
        brought(made, resigned("onnx", kind="aotinductor", device=device_of("aotinductor"), torch="1.0"))
    assert parsed == []


@pytest.mark.parametrize("backend", MADE)
def test_other_bytes_no_seal_and_strange_keys_keep_every_parser_away(backend: str, parsed: list[object]) -> None:
    made, sealed = MADE[backend], SEALS[backend]
    flipped = bytes([made.data[0] ^ 1]) + made.data[1:]
    with pytest.raises(KernelRejected, match="ESP-7258"):
        brought(made, sealed, data=flipped)
    with pytest.raises(KernelRejected, match="ESP-7251"):
        brought(made, b"")
    with pytest.raises(KernelRejected, match="ESP-7252"):
        brought(made, resigned(backend, OTHER))
    gone = RING.revoke(KEY.key_id, why="lost", now=datetime.fromtimestamp(NOW_S, UTC))
    with pytest.raises(KernelRejected, match="ESP-7254"):
        brought(made, sealed, ring=gone)
    assert parsed == []


@pytest.mark.parametrize("raw", [MADE["onnx"].data, io.BytesIO(MADE["onnx"].data), MADE["onnx"], None])
def test_raw_bytes_are_loaded_by_no_backend(raw: Any, parsed: list[object]) -> None:
    with pytest.raises(KernelRejected, match="ESP-7257"):
        load(raw, STATE)
    for backend in BACKENDS.values():
        with pytest.raises(KernelRejected, match="ESP-7257"):
            backend.load(raw, STATE)
    assert parsed == []


def test_a_form_is_loaded_as_nothing_but_what_it_was_signed_as(parsed: list[object]) -> None:
    found = opened(
        MADE["torchscript"].form, SEALS["torchscript"], MADE["torchscript"].data, IR.digest, RING, ManualClock(NOW_S)
    )
    with pytest.raises(KernelRejected, match="ESP-7256"):
        BACKENDS["onnx"].load(found, STATE)
    assert parsed == []
