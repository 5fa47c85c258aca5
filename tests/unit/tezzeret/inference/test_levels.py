"""Levels add proofs and inference forms beside bytes that stay the same; each is held against the design."""

import sys
from collections.abc import Callable, Mapping

import pytest
import torch

from esper.blueprints.kernel import Kernel, unpack_kernel
from esper.blueprints.weights import initial_state
from esper.contracts.kernel import BuildSpec
from esper.errors import CompilationError, ConfigError
from esper.ir import BlueprintIR, Graph, Layout, Site
from esper.ir.registry import REGISTRY
from esper.reference import evaluate
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.inference.backends import BACKENDS, Onnx, Rebuild, load
from esper.services.tezzeret.inference.certificate import certify
from esper.services.tezzeret.inference.forms import inference_form
from esper.services.tezzeret.inference.fusion import fuse
from esper.services.tezzeret.inference.levels import climb
from esper.services.tezzeret.inference.opening import verified_here
from esper.signing.sealed import Verified
from esper.testing.forging import adapter


def trial_of(ir: BlueprintIR, dtype: str = "float32") -> Trial:
    return Trial(Kernel(ir, initial_state(ir, seed=0, dtype=dtype), 0, dtype, 1), ValidatorConfig())


def normed() -> BlueprintIR:
    graph = Graph(Layout.CHANNELS_2D, 6)
    hidden = graph.relu(graph.batch_norm(graph.conv(graph.input, out=12, kernel=3, bias=False)))
    return graph.finish(graph.conv(hidden, out=6, kernel=1, init="zero"), name="normed")


def attending() -> BlueprintIR:
    return REGISTRY.build("self_attention", Site(Layout.TOKENS, 16))


DESIGNS: list[Callable[[], BlueprintIR]] = [adapter, normed, attending]


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_certificate_covers_every_size(design: Callable[[], BlueprintIR], dtype: str) -> None:
    ir = design()
    found = certify(trial_of(ir, dtype))
    assert found.modes == ("train", "eval")
    assert found.dynamic_axes[0] == 0
    assert len(found.dynamic_axes) == 1 + ir.layout.rank
    assert found.operators >= len(ir.nodes)


class Bound(torch.nn.Module):
    """A body that works for one size only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.ones(3, x.shape[-1])[:, :1]


def test_what_works_for_one_size_only_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["esper.blueprints.bodies"]._FACTORIES, "gelu", lambda use, tensors: Bound())
    with pytest.raises(CompilationError, match="no export certificate"):
        certify(trial_of(adapter()))


@pytest.mark.parametrize("remembers", [True, False])
def test_a_trace_leaves_torchs_settings_as_they_were(monkeypatch: pytest.MonkeyPatch, remembers: bool) -> None:
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=remembers):
        certify(trial_of(adapter()))
        monkeypatch.setitem(sys.modules["esper.blueprints.bodies"]._FACTORIES, "gelu", lambda use, tensors: Bound())
        with pytest.raises(CompilationError):
            certify(trial_of(adapter()))
        assert torch._dynamo.config.fake_tensor_cache_enabled is remembers


class Forgetful(torch.nn.Module):
    """A body that decides while it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (2.0 if torch.compiler.is_compiling() else 1.0)


def test_what_computes_something_else_when_traced_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["esper.blueprints.bodies"]._FACTORIES, "gelu", lambda use, tensors: Forgetful())
    with pytest.raises(CompilationError, match="differs"):
        certify(trial_of(adapter()))


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
@pytest.mark.parametrize("design", DESIGNS)
def test_a_form_computes_with_weights_that_were_trained_later(design: Callable[[], BlueprintIR], backend: str) -> None:
    holds_later_weights(design(), backend)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REGISTRY.names() if name.isidentifier()])
def test_onnx_forms_of_the_catalogue(name: str) -> None:
    for layout in sorted(REGISTRY.get(name).layouts):
        holds_later_weights(REGISTRY.build(name, Site(layout, 16, entering=12)), "onnx")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("design", [attending, normed])
def test_machine_code_takes_weights_later(design: Callable[[], BlueprintIR]) -> None:
    if why := BACKENDS["aotinductor"].missing(trial_of(design())):
        pytest.skip(why)
    holds_later_weights(design(), "aotinductor")


def holds_later_weights(ir: BlueprintIR, backend: str) -> None:
    trial = trial_of(ir)
    made = inference_form(trial, BACKENDS[backend])
    assert made.form.max_error < 1e-5
    assert made.form.size_bytes == len(made.data)
    later = {name: tensor + 0.1 for name, tensor in trial.grown.items()}
    program = load(verified_here(made.data, backend, ir.digest), fuse(ir, later).state)
    x = trial.input(trial.probes.odd)
    weights = {name: tensor.double().numpy() for name, tensor in later.items()}
    expected = torch.from_numpy(evaluate(ir, weights, x.double().numpy(), training=False))
    assert float((program(x).double() - expected).abs().max()) < 1e-4 * float(expected.abs().max())


class Off(Rebuild):
    """A backend that gets a weight wrong."""

    name = "off"

    def load(self, form: Verified, state: Mapping[str, torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        first = next(iter(state))
        return super().load(form, {**state, first: state[first] * 1.01})


def test_a_form_that_computes_something_else_is_refused() -> None:
    with pytest.raises(CompilationError, match="differs"):
        inference_form(trial_of(adapter()), Off())


def test_levels_are_reached_one_after_the_other() -> None:
    trial = trial_of(normed())
    assert [climb(trial, level).reached for level in ("O0", "O1", "O2")] == ["O0", "O1", "O2"]
    fused = climb(trial, "O2")
    assert [made.form.level for made in fused.inference] == ["O1", "O2"]
    assert fused.inference[1].form.merged == ("batch_norm1 into conv1",)
    assert [node.op for node in unpack_kernel(fused.inference[1].data).ir.nodes] == ["conv", "relu", "conv"]


def test_a_level_that_cannot_be_reached_says_why() -> None:
    done = climb(trial_of(adapter(), "bfloat16"), "O3")
    assert done.reached == "O2"
    assert "bfloat16" in done.shortfall


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.services.tezzeret.inference.backends.find_spec", lambda name: None)
    assert "pip install" in Onnx().missing(trial_of(adapter()))


def test_bytes_do_not_depend_on_the_level() -> None:
    artifacts = [KernelCompiler().compile(normed(), BuildSpec(level=level)) for level in ("O0", "O1", "O2")]
    assert len({artifact.artifact_id for artifact in artifacts}) == 1
    assert [artifact.optimization_level for artifact in artifacts] == ["O0", "O1", "O2"]
    assert artifacts[2].compilation_time_ms > artifacts[0].compilation_time_ms


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no backend"):
        KernelCompiler(backend="magic").compile(adapter(), BuildSpec(level="O3"))
