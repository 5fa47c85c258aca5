"""Making an inference form, and proving and timing it before it is kept."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
from torch import Tensor

from esper.contracts.kernel import CERTIFICATE, Certificate, InferenceArtifact, InferenceForm
from esper.errors import CompilationError
from esper.ir import digest_of
from esper.reference import evaluate
from esper.services.tezzeret.gates.trial import Trial, arrays, largest
from esper.services.tezzeret.inference.backends import Backend, Program
from esper.services.tezzeret.inference.fusion import fuse
from esper.services.tezzeret.inference.opening import device_of, missing, verified_here
from esper.signing.sealed import Verified

PLAIN = "eager"
"""Backend of level 2, which carries no code; every other program is of level 3."""

_ROUNDS = 40
_WARM_UP = 3


def inference_form(trial: Trial, backend: Backend) -> InferenceArtifact:
    """Make one form of a kernel.

    A form is a program for a design; its weights are given when it is loaded. It is made with generic weights, as a compiler may
    fold what is uniform, and proven against the numpy reference of the design as it was before fusion, at those weights and at
    the stored ones.

    Args:
        trial: The kernel on the test bench.
        backend: What makes the form.

    Raises:
        CompilationError: If it cannot be made here, or computes something else than the design.
    """
    if why := missing() or backend.missing(trial):
        raise _failed(trial, backend, why)
    began = time.perf_counter()
    fused = fuse(trial.ir, trial.grown)
    data = backend.make(fused, trial)
    made = time.perf_counter()
    verified = verified_here(data, backend.name, trial.ir.digest)
    program = backend.load(verified, fused.state)
    loaded = time.perf_counter()
    error = max(
        _error(program, trial, trial.grown), _error(_newborn(backend, verified, trial), trial, trial.kernel.state)
    )
    allowed = trial.config.dtype_tolerance[trial.kernel.dtype]
    if not error <= allowed:
        raise _failed(trial, backend, f"it differs by {error:.3g} of the largest value; {allowed:g} is allowed")
    latency_s, eager_s = _latencies(program, trial)
    form = InferenceForm(
        level="O2" if backend.name == PLAIN else "O3",
        backend=backend.name,
        torch=str(torch.__version__),
        device=device_of(backend.name),
        digest=digest_of(data),
        size_bytes=len(data),
        carries_code=backend.carries_code,
        merged=fused.steps,
        max_error=error,
        made_ms=(made - began) * 1e3,
        load_ms=(loaded - made) * 1e3,
        latency_p50_ms=latency_s * 1e3,
        eager_p50_ms=eager_s * 1e3,
    )
    return InferenceArtifact(form=form, data=data)


def certificate_form(found: Certificate) -> InferenceArtifact:
    """Return a certificate as the form that carries it."""
    data = found.model_dump_json().encode()
    form = InferenceForm(
        level="O1",
        backend=CERTIFICATE,
        torch=str(torch.__version__),
        digest=digest_of(data),
        size_bytes=len(data),
        carries_code=False,
        max_error=found.max_error,
        made_ms=found.took_ms,
    )
    return InferenceArtifact(form=form, data=data)


def _newborn(backend: Backend, verified: Verified, trial: Trial) -> Program:
    return backend.load(verified, fuse(trial.ir, trial.kernel.state).state)


def _error(program: Program, trial: Trial, state: Mapping[str, Tensor]) -> float:
    """Return the largest difference to the reference; a newborn's F(x) is zero, so its differences count as they are."""
    worst, weights = 0.0, arrays(state)
    for probe in trial.probes.all:
        x = trial.input(probe)
        expected = torch.from_numpy(evaluate(trial.ir, weights, x.double().numpy(), training=False))
        found = program(x)
        if found.shape != expected.shape:
            return float("inf")
        worst = max(worst, largest(found.double() - expected) / (largest(expected) or 1.0))
    return worst


def _latencies(program: Program, trial: Trial) -> tuple[float, float]:
    """Return medians in seconds of the form and of the eager kernel, run in turns."""
    x, kernel = trial.input(trial.probes.batch), trial.grown_module(trial.dtype).eval()
    times: Mapping[str, list[float]] = {"form": [], "eager": []}
    with torch.inference_mode():
        ways: dict[str, Callable[[Tensor], Tensor]] = {"form": program, "eager": kernel}
        for turn in range(_WARM_UP + _ROUNDS):
            for name, way in ways.items():
                began = time.perf_counter()
                way(x)
                if turn >= _WARM_UP:
                    times[name].append(time.perf_counter() - began)
    return median(times["form"]), median(times["eager"])


def _failed(trial: Trial, backend: Backend, why: str) -> CompilationError:
    return CompilationError(f"blueprint {trial.ir.name!r} has no form for {backend.name}", why=why, code="ESP-7140")
