"""From the bytes of a form to what a backend loads: nothing is parsed before its seal holds and says what it should."""

from functools import cache
from importlib.util import find_spec

import torch

from esper.contracts.kernel import InferenceForm
from esper.errors import KernelRejected
from esper.ports import Clock
from esper.runtime.clock import SystemClock
from esper.services.tezzeret.hardware import processor
from esper.services.tezzeret.inference.sealing import made_of, moment
from esper.services.tezzeret.orders import MACHINE_CODE
from esper.signing.keys import KeyRing, SigningKey
from esper.signing.sealed import Verified, seal, unseal

_LONGEST_DEVICE = 64


def opened(form: InferenceForm, sealed: bytes, data: bytes, blueprint_id: str, ring: KeyRing, clock: Clock) -> Verified:
    """Return a form's bytes once its seal holds, and says that they are of that blueprint and run here.

    Args:
        form: What the store says of it; believed only in what to ask the seal for.
        sealed: Its seal.
        data: Its bytes.
        blueprint_id: The blueprint that it is wanted for.
        ring: Keys that are trusted.
        clock: Tells whether a seal is from the future.

    Raises:
        KernelRejected: If anything is not so; no byte of the form was parsed.
    """
    found = unseal(data, sealed, ring, kind=form.backend, now=moment(clock))
    told = found.manifest
    if told.blueprint != blueprint_id:
        raise KernelRejected(
            "the form is of another blueprint",
            why=f"{told.blueprint[:19]} was signed, {blueprint_id[:19]} is asked for",
            todo="look at where it came from",
            code="ESP-7259",
        )
    here = device_of(told.kind)
    if told.device != here or (told.kind == MACHINE_CODE and told.torch != str(torch.__version__)):
        raise KernelRejected(
            "the form does not run here",
            why=f"torch {told.torch} made it for {told.device}, this is torch {torch.__version__} on {here}",
            todo="let the forge make it anew",
            code="ESP-7260",
        )
    return found


def device_of(kind: str) -> str:
    """Return what bytes of a kind run on here: the CPU, and machine code on one of the same model, whose instructions it uses."""
    return f"cpu {processor()}"[:_LONGEST_DEVICE] if kind == MACHINE_CODE else "cpu"


def verified_here(data: bytes, backend: str, blueprint_id: str) -> Verified:
    """Return bytes that this process has just made, for the proof that they compute what they should.

    They are sealed with a key that is drawn for this process, is never written, and is trusted by nobody else.
    """
    key, ring = _own()
    now = moment(SystemClock())
    sealed = seal(data, made_of(backend, blueprint_id, str(torch.__version__), device_of(backend)), key, now=now)
    return unseal(data, sealed, ring, kind=backend, now=now)


def missing() -> str:
    """Return why nothing can be sealed here, or nothing."""
    if find_spec("cryptography") is None:
        return (
            "cryptography is not installed, and no form is kept unsealed; pip install 'esper-morphogenesis[services]'"
        )
    return ""


@cache
def _own() -> tuple[SigningKey, KeyRing]:
    key = SigningKey.generate()
    return key, KeyRing().trust(key.public, name="this process")
