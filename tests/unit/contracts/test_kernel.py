"""Blueprints and kernels as they travel: what is written is strict, what is read tolerates the future."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from esper.contracts.kernel import (
    BlueprintContract,
    BlueprintStatus,
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    CompiledKernelArtifact,
    CompiledKernelContract,
    CompileJob,
    GateResult,
    KernelExecutionRequest,
    KernelStatus,
    ValidationResult,
)

IR = {"layout": "features", "nodes": []}
KERNEL = {"kernel_id": "sha256:k", "blueprint_id": "sha256:b", "kernel_binary_ref": "sha256:k"}
GATE = {"passed": True}
RESULT = {"kernel_id": "sha256:k", "correctness": GATE, "performance": GATE, "safety": GATE, "stability": GATE}

WRITTEN: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (BuildSpec, {}),
    (BlueprintSubmissionRequest, {"name": "mine", "architecture_ir": IR}),
    (KernelExecutionRequest, {"kernel_id": "sha256:k", "input_tensor_shape": [2, 8]}),
    (GateResult, GATE),
    (ValidationResult, RESULT),
]
READ: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (BlueprintSubmissionResponse, {"blueprint_id": "sha256:b", "status": "queued", "message": "waits"}),
    (BlueprintContract, {"blueprint_id": "sha256:b", "name": "mine", "architecture_ir": IR}),
    (CompiledKernelContract, KERNEL),
    (
        CompileJob,
        {
            "job_id": "job-1", "blueprint_id": "sha256:b", "name": "mine", "architecture_ir": IR, "build": {},
            "priority": 5, "attempt": 1,
        },
    ),
]  # fmt: skip
NEWER = {"from_a_later_version": 1}


@pytest.mark.parametrize(("model", "fields"), WRITTEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_record_that_we_write_forbids_unknown_fields(model: type[BaseModel], fields: dict[str, Any]) -> None:
    model.model_validate(fields)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        model.model_validate({**fields, **NEWER})


@pytest.mark.parametrize(("model", "fields"), READ, ids=lambda value: getattr(value, "__name__", ""))
def test_a_record_that_we_read_tolerates_what_a_later_version_adds(
    model: type[BaseModel], fields: dict[str, Any]
) -> None:
    known = {"created_at": datetime(2026, 1, 2, tzinfo=UTC)} if "created_at" in model.model_fields else {}
    assert model.model_validate({**fields, **known, **NEWER}) == model.model_validate({**fields, **known})


@pytest.mark.parametrize(("model", "fields"), [*WRITTEN, *READ], ids=lambda value: getattr(value, "__name__", ""))
def test_a_record_survives_json(model: type[BaseModel], fields: dict[str, Any]) -> None:
    record = model.model_validate(fields)
    assert model.model_validate_json(record.model_dump_json()) == record


def test_a_design_may_come_as_an_object_or_once_as_its_text() -> None:
    from_text = BlueprintSubmissionRequest.model_validate({"name": "mine", "architecture_ir": json.dumps(IR)})
    assert from_text == BlueprintSubmissionRequest.model_validate({"name": "mine", "architecture_ir": IR})
    with pytest.raises(ValidationError, match="valid dictionary"):
        BlueprintSubmissionRequest.model_validate({"name": "mine", "architecture_ir": json.dumps(json.dumps(IR))})
    with pytest.raises(ValidationError, match="architecture_ir"):
        BlueprintSubmissionRequest.model_validate({"name": "mine", "architecture_ir": "{"})


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", ""), ("name", "n" * 129), ("priority", 0), ("priority", 11), ("tags", ["t"] * 65), ("tags", "t")],
)
def test_a_submission_out_of_its_limits_is_refused(field: str, value: object) -> None:
    fields = {"name": "mine", "architecture_ir": IR}
    with pytest.raises(ValidationError, match=field):
        BlueprintSubmissionRequest.model_validate({**fields, field: value})


@pytest.mark.parametrize("priority", [1, 10])
def test_the_least_and_the_most_urgent_priority_are_allowed(priority: int) -> None:
    assert BlueprintSubmissionRequest(name="n", architecture_ir={}, priority=priority).priority == priority


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight_seed", -1),
        ("weight_seed", 2**63),
        ("dtype", "int8"),
        ("dtype", "float32 "),
        ("level", "O4"),
        ("level", "O"),
    ],
)
def test_a_build_that_no_forge_can_make_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        BuildSpec.model_validate({field: value})


@pytest.mark.parametrize("shape", [[], [1] * 9])
def test_an_execution_needs_a_shape_of_one_to_eight_axes(shape: list[int]) -> None:
    with pytest.raises(ValidationError, match="input_tensor_shape"):
        KernelExecutionRequest(kernel_id="sha256:k", input_tensor_shape=shape)


def test_nothing_defaults_to_validated_or_safe() -> None:
    kernel = CompiledKernelContract.model_validate(KERNEL)
    assert kernel.status is KernelStatus.PENDING_VALIDATION
    assert kernel.safety_checks_passed is False
    blueprint = BlueprintContract(blueprint_id="sha256:b", name="mine", architecture_ir={})
    assert blueprint.status is BlueprintStatus.UNVALIDATED


@pytest.mark.parametrize("model", [BlueprintContract, CompiledKernelContract])
def test_a_record_is_stamped_when_it_is_made_in_utc(model: type[BaseModel]) -> None:
    fields = KERNEL if model is CompiledKernelContract else {"blueprint_id": "b", "name": "n", "architecture_ir": {}}
    before = datetime.now(UTC)
    stamped: Any = model.model_validate(fields)
    assert before <= stamped.created_at <= datetime.now(UTC)
    assert stamped.created_at.tzinfo is UTC


def test_defaults_are_not_shared() -> None:
    first, second = (BlueprintContract(blueprint_id="b", name="n", architecture_ir={}) for _ in range(2))
    first.tags.append("mine")
    assert second.tags == []


def test_a_status_is_its_word() -> None:
    assert CompiledKernelContract.model_validate({**KERNEL, "status": "validated"}).status is KernelStatus.VALIDATED
    with pytest.raises(ValidationError, match="pending_validation"):
        CompiledKernelContract.model_validate({**KERNEL, "status": "blessed"})


def test_what_was_written_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BuildSpec().weight_seed = 3
    artifact = CompiledKernelArtifact(
        artifact_id="a", blueprint_id="b", kernel_binary=b"", compilation_time_ms=1.0, target_device="cpu",
        optimization_level="O0",
    )  # fmt: skip
    with pytest.raises(ValidationError, match="frozen"):
        artifact.kernel_binary = b"other"


@pytest.mark.parametrize("gate", ["correctness", "performance", "safety", "stability"])
def test_one_shut_gate_keeps_a_kernel_out_and_gives_its_reason(gate: str) -> None:
    assert ValidationResult.model_validate(RESULT).passed
    shut = ValidationResult.model_validate({**RESULT, gate: {"passed": False, "reasons": ["off by 0.5"]}})
    assert not shut.passed
    assert shut.reasons == ("off by 0.5",)


@pytest.mark.parametrize("gate", ["correctness", "performance", "safety", "stability"])
def test_a_report_without_one_of_its_gates_is_no_report(gate: str) -> None:
    with pytest.raises(ValidationError, match="Field required"):
        ValidationResult.model_validate({name: value for name, value in RESULT.items() if name != gate})
