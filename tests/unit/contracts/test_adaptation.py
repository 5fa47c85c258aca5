"""What the controller sees and decides, and what came of it."""

import pytest
from pydantic import ValidationError

from esper.contracts.adaptation import (
    Action,
    AdaptationDecision,
    AdaptationSignal,
    Candidate,
    LossPoint,
    Outcome,
    Reason,
    Severity,
    SlotState,
    SystemStatePacket,
    Verdict,
)

PACKET = SystemStatePacket(
    run_id="run-1", boundary=3, step=600, every=200, steps=None, topology_version=1, lead=1, host_params=114,
    params=114, max_params=None, history=(LossPoint(step=600, train=None, validation=0.5),), grafts=(200,),
    slots=(SlotState(slot="fc", stage=0, order=0, seeds=("dormant",), metrics={"grad_norm": 0.25}),),
    candidates=(
        Candidate(
            slot="fc", seed_idx=0, blueprint="gated_mlp", blueprint_id="sha256:b", kernel_id=None, kind="gated", stage=0,
            order=0, params=10, flops=20, masked=("over budget",),
        ),
    ),
)  # fmt: skip


def test_a_packet_survives_json_with_everything_in_it() -> None:
    assert SystemStatePacket.model_validate_json(PACKET.model_dump_json()) == PACKET


def test_a_packet_of_a_later_version_can_be_read() -> None:
    assert SystemStatePacket.model_validate({**PACKET.model_dump(), "weather": "fair"}) == PACKET


def test_a_packet_cannot_be_changed_under_its_reader() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PACKET.step = 0


def test_the_default_decision_does_nothing_and_was_asked_for() -> None:
    decision = AdaptationDecision()
    assert (decision.action, decision.asked, decision.target_layer, decision.kernel_id) == (
        Action.NONE,
        True,
        None,
        None,
    )


def test_every_decision_has_an_id_of_its_own() -> None:
    ids = {AdaptationDecision().decision_id for _ in range(100)}
    assert len(ids) == 100
    assert all(name.startswith("decision-") for name in ids)


@pytest.mark.parametrize("missing", ["target_layer", "kernel_id"])
@pytest.mark.parametrize("empty", [None, ""])
def test_a_decision_to_load_names_what_and_where(missing: str, empty: str | None) -> None:
    fields = {"action": "load_kernel", "target_layer": "fc", "kernel_id": "sha256:k"}
    assert AdaptationDecision.model_validate(fields).action is Action.LOAD_KERNEL
    with pytest.raises(ValidationError, match="names target_layer and kernel_id"):
        AdaptationDecision.model_validate({**fields, missing: empty})


def test_an_action_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValidationError, match="'none' or 'load_kernel'"):
        AdaptationDecision.model_validate({"action": "explode"})


def test_a_decision_carries_its_reasons_in_numbers() -> None:
    reason = Reason(text="plateau over 150 steps", name="slope", value=-0.001, threshold=-0.01)
    decision = AdaptationDecision(evidence=(reason,))
    assert AdaptationDecision.model_validate_json(decision.model_dump_json()).evidence == (reason,)


def test_a_signal_wraps_a_decision() -> None:
    signal = AdaptationSignal(requires_adaptation=False)
    assert (signal.severity, signal.decision) == (Severity.INFO, None)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_an_outcome_survives_json_whether_its_gain_was_measured_or_not(verdict: Verdict) -> None:
    for gain in (None, -0.25):
        outcome = Outcome(
            decision_id="d", run_id="r", slot="fc", seed_idx=0, blueprint="gated_mlp", kernel_id="sha256:k",
            verdict=verdict, gain=gain, gain_error=gain, params=10, steps=400,
        )  # fmt: skip
        assert Outcome.model_validate_json(outcome.model_dump_json()) == outcome
