"""Optimization levels: what is made beside the trainable artifact, whose bytes are the same at every level.

======  =====================================================================================================
level   adds
======  =====================================================================================================
``O0``  nothing: the kernel is rebuilt from its bytes, and validated
``O1``  a certificate that torch.export traces it, in training and evaluation, for any batch and extent
``O2``  its design fused for evaluation, as a kernel of its own
``O3``  the fused design compiled by a backend (ONNX on the CPU)
======  =====================================================================================================
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from esper.contracts.kernel import LEVELS, CompiledKernelArtifact, InferenceArtifact
from esper.errors import CompilationError
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.inference.backends import backend_named
from esper.services.tezzeret.inference.certificate import certify
from esper.services.tezzeret.inference.forms import PLAIN, certificate_form, inference_form

DEFAULT_BACKEND = "onnx"
"""What level 3 uses on the CPU: the fastest one on every blueprint of the catalogue."""


@dataclass(frozen=True)
class Climb:
    """How far a kernel came.

    Attributes:
        reached: The level.
        inference: What the levels made.
        shortfall: Why it came no further than that; empty where it came as far as was asked.
    """

    reached: str = "O0"
    inference: tuple[InferenceArtifact, ...] = ()
    shortfall: str = ""


def climb(trial: Trial, wanted: str, *, above: str = LEVELS[0], backend: str = DEFAULT_BACKEND) -> Climb:
    """Bring a kernel to a level, or as near to it as it comes.

    Args:
        trial: The kernel on the test bench.
        wanted: The level asked for.
        above: The level that it has.
        backend: What level 3 uses.

    Raises:
        ConfigError: If there is no such backend.
    """
    chosen, done = backend_named(backend), Climb(reached=above)
    steps: tuple[Callable[[], InferenceArtifact], ...] = (
        lambda: certificate_form(certify(trial)),
        lambda: inference_form(trial, backend_named(PLAIN)),
        lambda: inference_form(trial, chosen),
    )
    try:
        for level, step in zip(LEVELS[1:], steps, strict=True):
            if above < level <= wanted:
                done = replace(done, reached=level, inference=(*done.inference, step()))
    except CompilationError as short:
        return replace(done, shortfall=str(short))
    return done


def raised(artifact: CompiledKernelArtifact, done: Climb) -> CompiledKernelArtifact:
    """Return an artifact with what its levels added."""
    told = {"shortfall": done.shortfall} if done.shortfall else {}
    return artifact.model_copy(
        update={
            "optimization_level": done.reached,
            "inference": done.inference,
            "metadata": {**artifact.metadata, **told},
        }
    )
