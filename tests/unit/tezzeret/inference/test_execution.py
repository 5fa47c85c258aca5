"""Machine code runs in a child that may unpack it, once somebody who is trusted vouches for it; otherwise no byte is loaded."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import torch

from esper.contracts.kernel import BuildSpec, InferenceArtifact
from esper.errors import CompilationError, KernelRejected
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.execution import executed
from esper.services.tezzeret.inference.opening import device_of
from esper.services.tezzeret.inference.sealing import Sealer
from esper.services.tezzeret.orders import MACHINE_CODE, Additions, Execution, Order
from esper.services.tezzeret.pool import ForgePool, PoolConfig
from esper.services.tezzeret.scratch import no_compiler, no_scratch
from esper.services.tezzeret.screening import ForgeLimits
from esper.signing.keys import KeyRing, SigningKey
from esper.testing.forging import adapter, form_of

KERNEL = KernelCompiler().compile(adapter())
FORM = form_of(b"no machine code", backend=MACHINE_CODE).form.model_copy(
    update={"torch": str(torch.__version__), "device": device_of(MACHINE_CODE)}
)
PLANTED = InferenceArtifact(form=FORM, data=b"no machine code")
KEY, OTHER = SigningKey.generate(), SigningKey.generate()
RING = KeyRing().trust(KEY.public, name="forge")
ANOTHER = adapter(9).digest
LACKING = no_compiler() or no_scratch()
needs_toolchain = pytest.mark.skipif(bool(LACKING), reason=LACKING)


def order(
    made: InferenceArtifact = PLANTED,
    *,
    key: SigningKey = KEY,
    ring: KeyRing = RING,
    blueprint_id: str = KERNEL.blueprint_id,
    data: bytes | None = None,
    seal: bytes | None = None,
    **signed: str,
) -> Execution:
    """Return the order to run a form; what is signed may differ from what is said of it."""
    told = Sealer(key).seal(made.form.model_copy(update=signed), made.data, blueprint_id)
    return Execution(
        kernel_id=KERNEL.artifact_id,
        kernel=KERNEL.kernel_binary,
        shape=(3, 8),
        form=made.form.model_dump_json().encode(),
        data=made.data if data is None else data,
        seal=told if seal is None else seal,
        ring=msgspec.json.encode(ring.keys),
    )


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return what was to be loaded as machine code."""
    seen: list[object] = []

    def load(package: str, *rest: Any, **more: Any) -> Any:
        seen.append(package)
        raise RuntimeError("planted: these bytes are no machine code")

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    return seen


REVOKED = RING.revoke(KEY.key_id, why="lost", now=datetime(2020, 1, 1, tzinfo=UTC))
SEAL = order().seal
REFUSED: dict[str, tuple[Callable[[], Execution], str]] = {
    "nobody's": (lambda: order(seal=b""), "ESP-7251"),
    "a stranger's": (lambda: order(key=OTHER), "ESP-7252"),
    "of an empty ring": (lambda: order(ring=KeyRing()), "ESP-7252"),
    "a changed manifest": (lambda: order(seal=SEAL[:-1] + bytes([SEAL[-1] ^ 1])), "ESP-7253"),
    "revoked": (lambda: order(ring=REVOKED), "ESP-7254"),
    "signed as another kind": (lambda: order(backend="onnx"), "ESP-7256"),
    "other bytes": (lambda: order(data=b"other machine code"), "ESP-7258"),
    "of another blueprint": (lambda: order(blueprint_id=ANOTHER), "ESP-7259"),
    "for another torch": (lambda: order(torch="1.0"), "ESP-7260"),
    "for another processor": (lambda: order(device="cpu of another make"), "ESP-7260"),
    "for any processor": (lambda: order(device="cpu"), "ESP-7260"),
    "for another device": (lambda: order(device="cuda:0"), "ESP-7260"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_machine_code_is_not_loaded_that_nobody_trusted_vouches_for(case: str, loaded: list[object]) -> None:
    made, code = REFUSED[case]
    with pytest.raises(KernelRejected, match=code):
        executed(made())
    assert loaded == []


def test_a_seal_that_holds_lets_it_be_loaded(loaded: list[object]) -> None:
    with pytest.raises(RuntimeError, match="planted"):
        executed(order())
    assert len(loaded) == 1


Runs = Callable[..., ForgePool]


@pytest.fixture
async def pools() -> AsyncIterator[Runs]:
    """Give pools that are closed in the end."""
    made: list[ForgePool] = []

    def make(**config: Any) -> ForgePool:
        made.append(ForgePool(PoolConfig(limits=ForgeLimits(deadline_s=240.0), **config)))
        return made[-1]

    yield make
    for pool in made:
        await pool.close()


async def additions(pool: ForgePool) -> Additions:
    """Have a child finish the kernel."""
    asked = BuildSpec(level="O3").model_dump_json().encode()
    return await pool.finish(
        Order(
            blueprint_id=KERNEL.blueprint_id,
            architecture_ir=json.dumps(adapter().to_json()).encode(),
            build=asked,
            kernel_id=KERNEL.artifact_id,
        )
    )


@pytest.mark.slow
async def test_a_child_without_a_scratch_folder_says_so(pools: Runs) -> None:
    with pytest.raises(CompilationError, match=r"ESP-7141.*scratch_mb"):
        await pools().execute(order())


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_toolchain
async def test_a_child_makes_machine_code_and_another_runs_it(pools: Runs) -> None:
    added = await additions(pools(backend=MACHINE_CODE, scratch_mb=64))
    (made,) = [made for made in added.forms if made.form.backend == MACHINE_CODE]
    runs = pools(scratch_mb=64)
    found = await runs.execute(order(made))
    assert found.shape == (3, 8)
    assert found.latency_ms > 0
    with pytest.raises(CompilationError, match="ESP-7252"):
        await runs.execute(order(made, key=OTHER))
    assert (await runs.execute(order(made))).shape == (3, 8)
    assert runs.started == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_toolchain
async def test_files_that_grow_too_large_leave_a_kernel_without_machine_code(pools: Runs) -> None:
    added = await additions(pools(backend=MACHINE_CODE, scratch_mb=1))
    assert [made.form.backend for made in added.forms] == ["eager"]
    assert "ESP-7142" in added.shortfall
