"""Small builds for tests that need a library but no forge."""

from collections.abc import Sequence

from esper.contracts.kernel import (
    BlueprintSubmissionRequest,
    BuildSpec,
    CompiledKernelArtifact,
    GateResult,
    InferenceArtifact,
    InferenceForm,
    Measurement,
    ValidationResult,
)
from esper.ir import BlueprintIR, Graph, Layout, digest_of
from esper.signing.sealed import HEAD


def adapter(width: int = 4, channels: int = 8) -> BlueprintIR:
    """Return a small blueprint that is neutral and alive; another width is another design."""
    graph = Graph(Layout.FEATURES, channels)
    hidden = graph.gelu(graph.linear(graph.input, out=width))
    return graph.finish(graph.linear(hidden, out=channels, init="zero"), name="adapter")


def request_for(
    ir: BlueprintIR, *, priority: int = 5, tags: Sequence[str] = (), build: BuildSpec | None = None
) -> BlueprintSubmissionRequest:
    """Return the request that submits a blueprint."""
    return BlueprintSubmissionRequest(
        name=ir.name, architecture_ir=ir.to_json(), priority=priority, tags=list(tags), build=build or BuildSpec()
    )


def artifact_of(blueprint_id: str, data: bytes) -> CompiledKernelArtifact:
    """Return an artifact with the given bytes; a library does not look into them."""
    return CompiledKernelArtifact(
        artifact_id=digest_of(data),
        blueprint_id=blueprint_id,
        kernel_binary=data,
        compilation_time_ms=1.0,
        target_device="cpu",
        optimization_level="O0",
        metadata={"compiler_version": "test"},
    )


def form_of(data: bytes, *, level: str = "O3", backend: str = "onnx", seal: bytes | None = None) -> InferenceArtifact:
    """Return an inference form with the given bytes and a seal by nobody; a library does not verify it."""
    form = InferenceForm(
        level=level, backend=backend, torch="2.13", digest=digest_of(data), size_bytes=len(data), carries_code=True,
        max_error=0.0, made_ms=1.0, load_ms=1.0, latency_p50_ms=0.25, eager_p50_ms=0.5,
    )  # fmt: skip
    return InferenceArtifact(form=form, data=data, seal=HEAD + bytes(200) if seal is None else seal)


def verdict_on(
    artifact: CompiledKernelArtifact,
    *,
    reasons: Sequence[str] = (),
    throughput: float | None = None,
    measured: bool = True,
) -> ValidationResult:
    """Return a report about an artifact: passed, unless there are reasons against it."""
    figures = {"latency_p50_ms": 0.5} | ({} if throughput is None else {"throughput_per_s": throughput})
    passed = GateResult(passed=True)
    return ValidationResult(
        kernel_id=artifact.artifact_id,
        correctness=GateResult(passed=not reasons, reasons=tuple(reasons)),
        performance=Measurement(passed=True, metrics=figures, hardware="test bench") if measured else None,
        safety=passed,
        stability=passed,
    )
