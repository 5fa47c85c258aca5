"""Packets written by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from esper.contracts.adaptation import Candidate, LossPoint, SlotState, SystemStatePacket

MakeCandidate = Callable[..., Candidate]
MakePacket = Callable[..., SystemStatePacket]


def candidate(
    slot: str = "a", *, order: int = 0, stage: int = 0, kind: str = "gated_mixing", **fields: Any
) -> Candidate:
    """Return a candidate that is ready."""
    given: dict[str, Any] = {
        "slot": slot, "seed_idx": 0, "blueprint": f"{kind}_design", "blueprint_id": f"b:{slot}{kind}",
        "kernel_id": f"k:{slot}{kind}", "kind": kind, "stage": stage, "order": order, "params": 100, "flops": 100,
    }  # fmt: skip
    return Candidate(**{**given, **fields})


def packet(
    candidates: Sequence[Candidate] = (),
    *,
    boundary: int = 1,
    losses: Sequence[float] | None = None,
    train: Sequence[float] | None = None,
    slots: Sequence[SlotState] | None = None,
    **fields: Any,
) -> SystemStatePacket:
    """Return a packet of a run with boundaries every 100 steps."""
    validation = [1.0 / n for n in range(1, boundary + 1)] if losses is None else list(losses)
    trained = [None] * len(validation) if train is None else list(train)
    first = boundary - len(validation) + 1
    history = tuple(
        LossPoint(step=100 * (first + n), train=t, validation=v)
        for n, (t, v) in enumerate(zip(trained, validation, strict=True))
    )
    if slots is None:
        places = {c.slot: c for c in candidates}
        slots = [SlotState(slot=name, stage=c.stage, order=c.order) for name, c in places.items()]
    given: dict[str, Any] = {
        "run_id": "run-1", "boundary": boundary, "step": 100 * boundary, "every": 100, "steps": 4000,
        "topology_version": 0, "lead": 1, "host_params": 1000, "params": 1000, "max_params": None,
    }  # fmt: skip
    return SystemStatePacket(history=history, slots=tuple(slots), candidates=tuple(candidates), **{**given, **fields})


@pytest.fixture
def make_candidate() -> MakeCandidate:
    return candidate


@pytest.fixture
def make_packet() -> MakePacket:
    return packet
