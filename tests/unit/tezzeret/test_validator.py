"""Every gate lets sound kernels pass, and catches the fault that it is there for."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings

from esper.blueprints import catalog, initial_state, pack_kernel, unpack_kernel
from esper.contracts.kernel import BuildSpec, CompiledKernelArtifact, ValidationResult
from esper.errors import InvalidBlueprint, KernelRejected
from esper.ir import REGISTRY, BlueprintIR, Graph, Layout, Site, check_birth, cost, digest_of
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.gates.performance import performance
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.probes import probes_of
from esper.services.tezzeret.validator import KernelValidator
from esper.testing.blueprints import SIGNS_OF_DEATH, may_be_dead, newborns
from esper.testing.faults import Fault, faulty
from esper.testing.forging import adapter


def validated(ir: BlueprintIR, dtype: str = "float32") -> ValidationResult:
    return KernelValidator().validate(KernelCompiler().compile(ir, BuildSpec(dtype=dtype)), ir)


def artifact_with(ir: BlueprintIR, **changed: torch.Tensor) -> CompiledKernelArtifact:
    """Return an honest artifact of weights that no compiler would give."""
    state = {**initial_state(ir, seed=0, dtype="float32"), **{k.replace("__", "."): v for k, v in changed.items()}}
    data = pack_kernel(ir, state, seed=0)
    honest = KernelCompiler().compile(ir)
    return honest.model_copy(update={"kernel_binary": data, "artifact_id": digest_of(data)})


def batch_normed() -> BlueprintIR:
    graph = Graph(Layout.CHANNELS_2D, 3)
    entered = graph.batch_norm(graph.conv(graph.input, out=5, kernel=3, bias=False))
    return graph.finish(graph.conv(graph.gelu(entered), out=3, kernel=1, init="zero"), "normed")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("name", catalog.CATALOG)
def test_the_catalogue_passes_in_every_layout_and_type(name: str, layout: Layout, dtype: str) -> None:
    site = Site(layout, 12, entering=7)
    if REGISTRY.refusal(name, site) is None:
        report = validated(REGISTRY.build(name, site), dtype)
        assert report.passed, report.reasons


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_blueprint_with_running_statistics_passes(dtype: str) -> None:
    report = validated(batch_normed(), dtype)
    assert report.passed, report.reasons


@given(ir=newborns())
@settings(max_examples=25, deadline=None)
def test_random_blueprints_that_are_statically_alive_pass(ir: BlueprintIR) -> None:
    try:
        check_birth(ir)
    except InvalidBlueprint:
        return
    report = validated(ir)
    dead = all(any(sign in reason for sign in SIGNS_OF_DEATH) for reason in report.reasons)
    assert report.passed or (may_be_dead(ir) and dead), report.reasons


@pytest.mark.parametrize(
    ("fault", "gate", "said"),
    [
        (Fault.WRONG, "correctness", "differs from the reference"),
        (Fault.WRONG_GRADIENT, "correctness", "the gradient of linear1.weight is off by 0.5"),
        (Fault.NAN, "correctness", "differs from the reference"),
        (Fault.NAN, "stability", "not finite at birth"),
        (Fault.OVERFLOW, "stability", "not finite at input scale 10000"),
        (Fault.UNSTEADY, "correctness", "not deterministic"),
        (Fault.MODE, "correctness", "differs from the reference in evaluation"),
        (Fault.TAMPER, "correctness", "the gradient"),
        (Fault.DRAWS, "safety", "global random generator"),
        (Fault.COSTLY, "safety", "takes 504 FLOPs for 3 examples and declares 288"),
        (Fault.RAISE, "correctness", "ValueError: planted"),
    ],
)
def test_a_planted_fault_is_caught_by_its_gate(fault: Fault, gate: str, said: str) -> None:
    report = validated(faulty(fault))
    found = {"correctness": report.correctness, "safety": report.safety, "stability": report.stability}[gate]
    assert not report.passed
    assert any(said in reason for reason in found.reasons), found.reasons


def test_a_slow_kernel_is_caught() -> None:
    data = KernelCompiler().compile(faulty(Fault.SLOW)).kernel_binary
    quick = dataclasses.replace(ValidatorConfig(), latency_floor_ms=10.0, fewest_latency_runs=3)
    result = performance(Trial(unpack_kernel(data), quick))
    assert not result.passed
    assert "10 ms are allowed" in result.reasons[0]
    assert result.metrics["latency_p50_ms"] >= 20


def test_weights_that_are_not_neutral_are_caught_though_the_blueprint_is() -> None:
    artifact = artifact_with(adapter(), linear2__weight=torch.full((8, 4), 1e-6))
    report = KernelValidator().validate(artifact, adapter())
    assert any("not neutral at birth" in reason for reason in report.correctness.reasons)


def test_weights_through_which_no_gradient_comes_are_caught_though_the_blueprint_is_alive() -> None:
    artifact = artifact_with(adapter(), linear1__weight=torch.zeros(4, 8), linear1__bias=torch.zeros(4))
    report = KernelValidator().validate(artifact, adapter())
    assert any("zero factor 'linear2.weight' has no gradient" in reason for reason in report.correctness.reasons)


def test_weights_that_overflow_are_caught() -> None:
    artifact = artifact_with(adapter(), linear1__weight=torch.full((4, 8), 1e36))
    report = KernelValidator().validate(artifact, adapter())
    assert not report.stability.passed


def test_bytes_that_were_changed_are_refused_before_they_are_parsed() -> None:
    artifact = KernelCompiler().compile(adapter())
    damaged = artifact.model_copy(update={"kernel_binary": artifact.kernel_binary[:-1] + b"\x01"})
    with pytest.raises(KernelRejected, match="its bytes have the digest"):
        KernelValidator().validate(damaged, adapter())


def test_bytes_of_another_blueprint_are_refused() -> None:
    with pytest.raises(KernelRejected, match="hold the blueprint"):
        KernelValidator().validate(KernelCompiler().compile(adapter(2)), adapter(3))


async def test_the_coroutine_gives_the_same_verdict() -> None:
    artifact = KernelCompiler().compile(adapter())
    report = await KernelValidator().validate_kernel(artifact, adapter())
    assert report.passed
    assert report.kernel_id == artifact.artifact_id
    wrong = KernelCompiler().compile(faulty(Fault.WRONG))
    assert not (await KernelValidator().validate_kernel(wrong, faulty(Fault.WRONG))).passed


def test_metrics_are_finite_and_say_what_was_measured() -> None:
    report = validated(adapter())
    assert report.safety.metrics["params"] == 4 * 8 + 4 + 8 * 4 + 8 == cost(adapter(), ()).params
    assert report.safety.metrics["flops"] == 2 * (8 * 4 + 4 * 8)
    assert report.performance is not None
    assert 0 < report.performance.metrics["latency_p50_ms"] <= report.performance.metrics["latency_p95_ms"]
    measured = report.performance.metrics
    assert measured["throughput_per_s"] == pytest.approx(8e3 / measured["latency_p50_ms"])
    assert report.stability.metrics["loss_ratio_after_fit"] < 1
    assert measured["loss_ratio_after_training"] < 1
    assert all(math.isfinite(value) for gate in report.gates for value in gate.metrics.values())


def test_a_kernel_that_does_not_train_is_caught_when_it_is_measured() -> None:
    data = KernelCompiler().compile(adapter()).kernel_binary
    wild = dataclasses.replace(ValidatorConfig(), training_rate=1e30)
    result = performance(Trial(unpack_kernel(data), wild))
    assert not result.passed
    assert any("steps of AdamW" in reason for reason in result.reasons)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_kernels_in_half_precision_are_measured_too(dtype: str) -> None:
    artifact = KernelCompiler().compile(adapter(), BuildSpec(dtype=dtype))
    assert KernelValidator().measure(artifact, adapter()).passed


def test_what_is_to_be_measured_later_is_not_measured_now() -> None:
    report = KernelValidator().validate(KernelCompiler().compile(adapter()), adapter(), measured=False)
    assert report.passed
    assert report.performance is None


def test_validation_neither_draws_random_numbers_nor_changes_threads() -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    assert validated(adapter()).passed
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_probes_reach_as_far_as_the_widest_kernel_and_hold_odd_extents() -> None:
    graph = Graph(Layout.CHANNELS_2D, 2)
    far = graph.conv(graph.input, out=2, kernel=5, dilation=3, padding_mode="reflect")
    probes = probes_of(graph.finish(graph.conv(graph.gelu(far), out=2, kernel=1, init="zero"), "far"))
    assert probes.wide.extent >= (13, 14)
    assert all(size % 2 == 1 for size in probes.odd.extent)
    assert [probe.batch for probe in probes.all] == [1, 3, 8]


@pytest.mark.parametrize("factor", [1e-30, 1e-12])
@pytest.mark.parametrize("seed", range(6))
def test_a_weight_that_only_rounding_moves_is_dead_whatever_the_draw(factor: float, seed: int) -> None:
    graph = Graph(Layout.CHANNELS_1D, 1)
    faint = graph.scale(graph.mul(graph.input, graph.input), value=factor)
    ir = graph.finish(graph.conv(faint, out=1, kernel=1, init="zero"), "faint")
    report = KernelValidator().validate(KernelCompiler().compile(ir, BuildSpec(weight_seed=seed)), ir)
    assert "is dead" in " ".join(report.correctness.reasons)
