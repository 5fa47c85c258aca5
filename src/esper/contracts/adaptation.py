"""What the controller sees, what it decides, and what came of it."""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from esper.contracts.ids import new_id


class Record(BaseModel):
    """A frozen record; readers tolerate fields that they do not know."""

    model_config = ConfigDict(frozen=True)


class LossPoint(Record):
    """Losses at one boundary.

    Attributes:
        step: Optimizer step.
        train: Mean training loss since the boundary before, or None where no loss was given.
        validation: Mean held-out loss of the averaged weights.
    """

    step: int
    train: float | None
    validation: float


class SlotState(Record):
    """One slot as the controller sees it.

    Attributes:
        slot: Name of the slot.
        stage: Index of its stage: consecutive slots of one layout, width and extent.
        order: Position in the forward pass.
        seeds: Lifecycle states of its seeds, by index.
        metrics: Latest health metrics.
    """

    slot: str
    stage: int
    order: int
    seeds: tuple[str, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)


KERNEL_NOT_READY = "kernel not ready"
"""The one mask that time removes."""
OVER_BUDGET = "over budget"
"""How the masks begin that no controller may pass."""


class Candidate(Record):
    """One graft that could be made.

    Attributes:
        slot: Name of the slot.
        seed_idx: Index that the seed would have.
        blueprint: Name of the blueprint.
        blueprint_id: Its content address at this site.
        kernel_id: Content address of the kernel, or None while it is not ready.
        kind: What the design does, such as ``gated_mixing``.
        stage: Stage of the slot.
        order: Position of the slot in the forward pass.
        params: Parameters that it adds.
        flops: Forward FLOPs that it adds per example.
        score: Of the slot, by the packet's signal: the higher, the more it wants to grow; or None where it was not measured.
        masked: Reasons for which it may not be chosen now; empty where it may.
    """

    slot: str
    seed_idx: int
    blueprint: str
    blueprint_id: str
    kernel_id: str | None
    kind: str
    stage: int
    order: int
    params: int
    flops: int
    score: float | None = None
    masked: tuple[str, ...] = ()


class SystemStatePacket(Record):
    """All that a decision may depend on.

    Attributes:
        run_id: The run.
        boundary: Index of the boundary at which the packet was made.
        step: Optimizer step of that boundary.
        every: Optimizer steps from one boundary to the next.
        steps: Planned length of the run in optimizer steps, or None.
        topology_version: Grows by one with every change of the model; a decision made for another one is void.
        lead: Boundaries between a decision and its joining.
        host_params: Parameters of the host alone.
        params: Parameters now.
        max_params: Parameters that the budget allows, or None.
        signal: Name of the measurement that scored the slots.
        history: Losses at the boundaries so far, oldest first, bounded.
        grafts: Steps at which grafts joined, oldest first, whatever became of them.
        slots: Every slot.
        candidates: Every graft that could be made, masked ones included.
    """

    run_id: str
    boundary: int
    step: int
    every: int
    steps: int | None
    topology_version: int
    lead: int
    host_params: int
    params: int
    max_params: int | None
    signal: str = "bottleneck"
    history: tuple[LossPoint, ...]
    grafts: tuple[int, ...] = ()
    slots: tuple[SlotState, ...] = ()
    candidates: tuple[Candidate, ...] = ()


class Action(StrEnum):
    """What a decision asks for."""

    NONE = "none"
    LOAD_KERNEL = "load_kernel"


class Reason(Record):
    """One fact that a decision rests on, in numbers.

    Attributes:
        text: The fact as a person reads it.
        name: Name of the measured quantity.
        value: What was measured.
        threshold: What it was held against, or None.
    """

    text: str
    name: str
    value: float
    threshold: float | None = None


class AdaptationDecision(Record):
    """What the controller chose, and why.

    Attributes:
        action: What to do.
        reason: Why, in one line.
        evidence: The same in numbers.
        decision_id: A trainer applies each id once.
        run_id: The run it was made for.
        topology_version: Void where the model has changed since.
        boundary: Boundary at which the graft joins; None means the packet's ``lead`` after the one of the packet.
        target_layer: Name of the slot.
        seed_idx: Index of the seed in the slot.
        blueprint: Name of the blueprint.
        kernel_id: Content address of the kernel.
        strategy: Name of the rule or policy that chose.
        asked: False where the controller could not be asked; its "none" is then not an answer.
        log_propensity: Logarithm of the probability with which this action was drawn; 0 for a deterministic rule.
    """

    action: Action = Action.NONE
    reason: str = ""
    evidence: tuple[Reason, ...] = ()
    decision_id: str = Field(default_factory=lambda: new_id("decision"))
    run_id: str = ""
    topology_version: int | None = None
    boundary: int | None = None
    target_layer: str | None = None
    seed_idx: int = 0
    blueprint: str | None = None
    kernel_id: str | None = None
    strategy: str = ""
    asked: bool = True
    log_propensity: float = 0.0

    @model_validator(mode="after")
    def _names_what_it_loads(self) -> Self:
        if self.action is Action.LOAD_KERNEL and not (self.target_layer and self.kernel_id):
            raise ValueError("a load_kernel decision names target_layer and kernel_id")
        return self


class Severity(StrEnum):
    """How pressing an adaptation is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


class AdaptationSignal(Record):
    """A request to adapt, as the execution layer takes it."""

    requires_adaptation: bool
    severity: Severity = Severity.INFO
    decision: AdaptationDecision | None = None


class Verdict(StrEnum):
    """What became of a graft."""

    KEPT = "kept"
    CULLED = "culled"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"


class Outcome(Record):
    """What a graft brought.

    Attributes:
        gain: Fall of the mean held-out loss over the evaluation, in the unit of the loss; None where it was not measured.
        gain_error: One standard error of ``gain`` (the spread over graft-free windows where there are enough).
        params: Parameters it added.
        steps: Optimizer steps from joining to verdict.
    """

    decision_id: str
    run_id: str
    slot: str
    seed_idx: int
    blueprint: str
    kernel_id: str
    verdict: Verdict
    gain: float | None
    gain_error: float | None
    params: int
    steps: int
