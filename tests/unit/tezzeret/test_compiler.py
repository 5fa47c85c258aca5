"""Blueprints become bytes, the same ones everywhere."""

import pytest

from esper.blueprints import load_kernel
from esper.contracts.kernel import BuildSpec
from esper.errors import ConfigError, InvalidBlueprint
from esper.ir import Graph, Layout, digest_of
from esper.services.tezzeret import compiler
from esper.services.tezzeret.compiler import KernelCompiler, RealKernelCompiler
from esper.testing.forging import adapter


def test_an_artifact_is_named_by_its_bytes_and_holds_the_blueprint() -> None:
    artifact = KernelCompiler().compile(adapter())
    assert artifact.artifact_id == digest_of(artifact.kernel_binary)
    kernel = load_kernel(artifact.kernel_binary, digest=artifact.artifact_id)
    assert kernel.ir.digest == artifact.blueprint_id == adapter().digest


def test_equal_builds_have_equal_bytes_and_other_seeds_or_types_have_others() -> None:
    builds = [
        BuildSpec(),
        BuildSpec(weight_seed=1),
        BuildSpec(dtype="float64"),
        BuildSpec(dtype="bfloat16"),
        BuildSpec(dtype="float16"),
    ]
    first = [KernelCompiler().compile(adapter(), build).artifact_id for build in builds]
    again = [KernelCompiler().compile(adapter(), build).artifact_id for build in builds]
    assert first == again
    assert len(set(first)) == len(builds)


def test_bytes_do_not_depend_on_the_level_or_the_name() -> None:
    graph = Graph(Layout.FEATURES, 8)
    hidden = graph.gelu(graph.linear(graph.input, out=4))
    renamed = graph.finish(graph.linear(hidden, out=8, init="zero"), name="another_name")
    ids = {
        KernelCompiler().compile(ir, BuildSpec(level=f"O{n}")).artifact_id
        for ir in (adapter(), renamed)
        for n in (0, 1)
    }
    assert len(ids) == 1


def test_metadata_say_what_made_the_artifact() -> None:
    artifact = KernelCompiler().compile(adapter(), BuildSpec(weight_seed=3, level="O2"))
    assert artifact.metadata["op_library"] == "1"
    assert artifact.metadata["weight_seed"] == "3"
    assert artifact.metadata["requested_level"] == "O2"
    assert artifact.optimization_level == "O2"
    assert "shortfall" not in artifact.metadata
    assert artifact.metadata["trusted"] == "true"
    assert artifact.compilation_time_ms > 0


async def test_the_coroutine_makes_the_same_artifact() -> None:
    artifact = await RealKernelCompiler().compile_blueprint(adapter(), optimization_level="O0")
    assert artifact.artifact_id == KernelCompiler().compile(adapter()).artifact_id


async def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigError, match="O9"):
        await KernelCompiler().compile_blueprint(adapter(), optimization_level="O9")


def test_a_dead_graft_is_not_compiled() -> None:
    graph = Graph(Layout.FEATURES, 4)
    hidden = graph.linear(graph.input, out=4, init="zero")
    with pytest.raises(InvalidBlueprint, match="dead"):
        KernelCompiler().compile(graph.finish(graph.linear(hidden, out=4, init="zero"), "dead"))


def test_the_specified_names_are_here() -> None:
    assert compiler.RealKernelCompiler is KernelCompiler
    assert compiler.CompilationError.default_code == "ESP-7100"
