"""The records that the specification gives: their fields, what may be left out, and what they are then."""

import dataclasses
import importlib
from datetime import datetime
from enum import StrEnum
from typing import Any, get_type_hints

import msgspec
import pytest
from pydantic import BaseModel, ValidationError

NEEDED = object()
"""The field has no default."""
STAMPED = object()
"""The field has a default that differs from time to time."""

CONTRACTS = "esper.services.contracts"
ADAPTATION = "esper.contracts.adaptation"

FIELDS: dict[str, dict[str, object]] = {
    f"{CONTRACTS}:BlueprintSubmissionRequest": {
        "name": NEEDED, "architecture_ir": NEEDED, "submitted_by": "system", "tags": [], "priority": 5,
    },
    f"{CONTRACTS}:BlueprintSubmissionResponse": {
        "blueprint_id": NEEDED, "status": NEEDED, "message": NEEDED, "estimated_compilation_time_s": None,
        "queue_position": None,
    },
    f"{CONTRACTS}:KernelExecutionRequest": {"kernel_id": NEEDED, "input_tensor_shape": NEEDED, "execution_context": {}},
    f"{CONTRACTS}:HealthSignal": {
        "layer_id": NEEDED, "seed_idx": NEEDED, "timestamp": NEEDED, "metrics": NEEDED, "health_score": None,
        "anomaly_detected": False, "run_id": None, "rank": 0, "step": None, "nonfinite": (),
    },
    f"{CONTRACTS}:BlueprintContract": {
        "blueprint_id": NEEDED, "name": NEEDED, "architecture_ir": NEEDED, "status": "unvalidated", "created_at": STAMPED,
        "tags": [], "metadata": {}, "version": 1, "parent_id": None,
    },
    # Nothing defaults to validated or safe, although the text says so.
    f"{CONTRACTS}:CompiledKernelContract": {
        "kernel_id": NEEDED, "blueprint_id": NEEDED, "kernel_binary_ref": NEEDED, "status": "pending_validation",
        "compilation_time": 0.0, "created_at": STAMPED, "target_device": "cpu", "optimization_level": "O2",
        "estimated_flops": None, "memory_footprint_mb": None, "validation_metrics": {}, "safety_checks_passed": False,
    },
    "esper.contracts:CompiledKernelArtifact": {
        "artifact_id": NEEDED, "blueprint_id": NEEDED, "kernel_binary": NEEDED, "compilation_time_ms": NEEDED,
        "target_device": NEEDED, "optimization_level": NEEDED, "metadata": {},
    },
    "esper.services.tezzeret.validator:ValidationResult": {
        "correctness": NEEDED, "performance": NEEDED, "safety": NEEDED, "stability": NEEDED,
    },
    f"{ADAPTATION}:AdaptationDecision": {"action": "none", "reason": "", "decision_id": STAMPED, "asked": True},
    f"{ADAPTATION}:AdaptationSignal": {"requires_adaptation": NEEDED, "severity": "info"},
    "esper.services.tamiyo.analyzer:AnalysisResult": {
        "signal_id": NEEDED, "is_anomaly": NEEDED, "trend": NEEDED, "recommendations": NEEDED,
        "requires_intervention": NEEDED,
    },
}  # fmt: skip


def record(where: str) -> Any:
    home, _, name = where.partition(":")
    return getattr(importlib.import_module(home), name)


def defaults(kind: Any) -> dict[str, object]:
    """Return every field of a record with its default."""
    if issubclass(kind, BaseModel):
        return {
            name: NEEDED if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in kind.model_fields.items()
        }
    if issubclass(kind, msgspec.Struct):
        return {
            field.name: NEEDED
            if field.required
            else field.default
            if field.default is not msgspec.NODEFAULT
            else STAMPED
            for field in msgspec.structs.fields(kind)
        }
    return {
        field.name: NEEDED if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(kind)
    }


@pytest.mark.parametrize("where", FIELDS)
def test_a_record_has_the_specified_fields_and_defaults(where: str) -> None:
    found = defaults(record(where))
    for name, default in FIELDS[where].items():
        assert name in found, name
        if default is STAMPED:
            assert found[name] is not NEEDED, name
        else:
            assert found[name] == default, name


@pytest.mark.parametrize("where", [where for where in FIELDS if where.startswith(CONTRACTS)])
def test_a_record_that_crosses_a_border_needs_nothing_more_than_is_specified(where: str) -> None:
    more = {name for name, default in defaults(record(where)).items() if default is NEEDED} - FIELDS[where].keys()
    assert more == set()


def test_a_health_signal_is_typed_as_specified() -> None:
    hints = get_type_hints(record(f"{CONTRACTS}:HealthSignal"))
    expected = {
        "layer_id": str, "seed_idx": int, "timestamp": datetime, "metrics": dict[str, float], "health_score": float | None,
        "anomaly_detected": bool,
    }  # fmt: skip
    assert {name: hints[name] for name in expected} == expected


@pytest.mark.parametrize("priority", [0, 11])
def test_a_priority_outside_of_1_to_10_is_refused(priority: int) -> None:
    with pytest.raises(ValidationError):
        record(f"{CONTRACTS}:BlueprintSubmissionRequest")(name="n", architecture_ir={}, priority=priority)


STATUSES = {
    "BlueprintStatus": {"unvalidated", "validated", "deployed"},
    "KernelStatus": {"pending_validation", "validated"},
}


@pytest.mark.parametrize("name", STATUSES)
def test_a_status_has_the_specified_words(name: str) -> None:
    kind = record(f"{CONTRACTS}:{name}")
    assert issubclass(kind, StrEnum)
    assert STATUSES[name] <= {str(word) for word in kind}


def test_a_validation_has_one_word_for_all_its_gates() -> None:
    gate = {"passed": True}
    every = dict.fromkeys(("correctness", "performance", "safety", "stability"), gate)
    assert (
        record("esper.services.tezzeret.validator:ValidationResult").model_validate({"kernel_id": "k", **every}).passed
    )


TABLES = {
    "blueprints": {
        "id", "name", "architecture_ir", "status", "version", "parent_id", "tags", "metadata", "created_at", "updated_at",
        "estimated_flops", "memory_footprint_mb",
    },
    "kernels": {
        "id", "blueprint_id", "kernel_binary_ref", "status", "compilation_time_ms", "target_device", "optimization_level",
        "compiler_version", "validation_passed", "validation_metrics", "safety_checks_passed", "benchmark_results",
        "created_at",
    },
}  # fmt: skip


@pytest.mark.parametrize(("table", "name"), [("blueprints", "Blueprint"), ("kernels", "Kernel")])
def test_a_table_has_the_specified_columns(table: str, name: str) -> None:
    model = record(f"esper.services.urza.models:{name}")
    assert model.__tablename__ == table
    # Tags live in a table of their own, and are an attribute all the same.
    beside = {column for column in TABLES[table] if column not in model.__table__.columns}
    assert beside == {column for column in beside if hasattr(model, column)}
    assert beside <= {"tags"}
