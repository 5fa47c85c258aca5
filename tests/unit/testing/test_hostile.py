"""Whatever is sent is refused in a sentence or sound; what is sound is built, and computes what it says."""

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings

from esper.contracts.kernel import BlueprintSubmissionRequest, BuildSpec, CompileJob
from esper.errors import EsperError
from esper.ir import BlueprintIR, check_birth, lint
from esper.services.tezzeret.build import Builder
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.orders import Forged, order_of, read_kernel
from esper.services.tezzeret.screening import ForgeLimits, screen
from esper.services.tezzeret.validator import KernelValidator
from esper.testing.blueprints import SIGNS_OF_DEATH, may_be_dead, newborns
from esper.testing.hostile import MUTATIONS, Hostile, hostile


@given(sent=hostile())
@settings(max_examples=600, suppress_health_check=list(HealthCheck))
@example(sent=Hostile("strange text", {"\ud800": 1}))
@example(sent=Hostile("constant", {"layout": "features", "channels": 1, "output": "s", "nodes": [
    {"id": "s", "op": "scale", "inputs": ["input"], "attrs": {"value": 10**400}}
]}))  # fmt: skip
def test_whatever_is_sent_is_refused_in_a_sentence_or_sound(sent: Hostile) -> None:
    try:
        ir = screen(sent.source, ForgeLimits())
    except EsperError as error:
        refused = error
    else:
        assert BlueprintIR.from_json(json.dumps(ir.to_json())).digest == ir.digest
        return
    assert refused.code.startswith("ESP-")
    assert str(refused).encode(), "it can be written down"
    assert len(str(refused)) < 2_000, "it does not repeat a flood"


def test_every_mutation_is_drawn_and_most_are_refused() -> None:
    drawn: Counter[str] = Counter()
    sound: Counter[str] = Counter()

    @given(sent=hostile())
    @settings(max_examples=800, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def draw(sent: Hostile) -> None:
        drawn[sent.kind] += 1
        try:
            check_birth(BlueprintIR.from_json(sent.source))
        except EsperError:
            return
        sound[sent.kind] += 1

    draw()
    assert set(drawn) == set(MUTATIONS)
    assert 0.02 < sound.total() / drawn.total() < 0.5, sound


@given(ir=newborns())
@settings(max_examples=25)
def test_every_sound_blueprint_is_built_and_agrees_with_the_reference(ir: BlueprintIR) -> None:
    if any(finding.severity == "error" for finding in lint(ir)):
        return
    job = CompileJob(
        job_id="job", blueprint_id=ir.digest, name=ir.name, architecture_ir=ir.to_json(), build=BuildSpec(),
        priority=5, attempt=1,
    )  # fmt: skip
    reply = Builder(KernelCompiler(), KernelValidator()).reply(order_of(job, "O0"))
    assert isinstance(reply, Forged), reply
    _, report = read_kernel(reply)
    dead = all(any(sign in reason for sign in SIGNS_OF_DEATH) for reason in report.correctness.reasons)
    assert report.correctness.passed or (may_be_dead(ir) and dead), report.reasons
    assert report.correctness.metrics["error_float64"] < 1e-9


@pytest.mark.parametrize("text", ["[" * 100_000, '{"layout": "features", "layout": "tokens"}', "{", "\ud800"])
def test_a_design_that_travels_as_text_is_refused_by_its_contract(text: str) -> None:
    with pytest.raises(ValueError, match="architecture_ir"):
        BlueprintSubmissionRequest(name="sent", architecture_ir=text)  # type: ignore[arg-type]
