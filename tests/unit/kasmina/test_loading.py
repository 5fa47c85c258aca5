"""A wrapped model loads validated kernels by name."""

import asyncio
import inspect
from pathlib import Path

import pytest
import torch

from esper.contracts.adaptation import Action, AdaptationDecision, AdaptationSignal, Outcome, Severity
from esper.contracts.kernel import (
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    CompiledKernelContract,
)
from esper.errors import ConfigError, Conflict, IllegalTransition, KernelRejected, NotFound
from esper.ir import REGISTRY
from esper.kasmina import MorphableModel, SeedState, placement_of, topology, wrap
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import artifact_of, request_for, verdict_on
from esper.testing.zoo import ZOO
from tests.laws.support import kernel_for, output, wrapped


class Shelf:
    """A library of bytes in memory."""

    def __init__(self, **kernels: bytes) -> None:
        self.kernels = dict(kernels)
        self.asked: list[str] = []

    async def read(self, kernel_id: str) -> bytes:
        self.asked.append(kernel_id)
        await asyncio.sleep(0)
        if kernel_id not in self.kernels:
            raise NotFound(f"kernel {kernel_id}")
        return self.kernels[kernel_id]

    async def find(self, blueprint_id: str, build: BuildSpec) -> CompiledKernelContract | None:
        raise NotImplementedError

    async def submit(self, request: BlueprintSubmissionRequest) -> BlueprintSubmissionResponse:
        raise NotImplementedError

    async def report(self, outcome: Outcome) -> None:
        raise NotImplementedError


def ready() -> tuple[MorphableModel, Shelf, str]:
    """Return a model, its library, and the id of a kernel for ``fc1``."""
    host = ZOO["mlp"]
    data, kernel_id = kernel_for(wrapped(host), "fc1", "mlp_adapter")
    shelf = Shelf(**{kernel_id: data})
    model = wrap(host.model(), example=host.batch().x, library=shelf)
    assert isinstance(model, MorphableModel)
    return model, shelf, kernel_id


def signal(kernel_id: str | None, *, slot: str = "fc1", action: Action = Action.LOAD_KERNEL) -> AdaptationSignal:
    decision = AdaptationDecision(action=action, target_layer=slot, kernel_id=kernel_id, seed_idx=1)
    return AdaptationSignal(requires_adaptation=True, severity=Severity.WARNING, decision=decision)


def states(model: MorphableModel) -> dict[tuple[str, int], list[str]]:
    """Return what every seed went through."""
    return {key: [state for state, _ in seed.history] for key, seed in placement_of(model).seeds.items()}


async def test_a_kernel_is_read_from_the_library_and_joined() -> None:
    host = ZOO["mlp"]
    model, shelf, kernel_id = ready()
    plain = output(host.model(), host.batch())
    await model.load_kernel("fc1", 0, kernel_id)
    assert shelf.asked == [kernel_id]
    assert [(entry.slot, entry.seed_idx, entry.kernel_id) for entry in topology(model)] == [("fc1", 0, kernel_id)]
    assert states(model) == {("fc1", 0): ["germinated", "loaded", "blending"]}
    assert torch.equal(output(model, host.batch()), plain)


def test_both_names_of_the_specification_are_coroutines() -> None:
    assert inspect.iscoroutinefunction(MorphableModel.load_kernel)
    assert inspect.iscoroutinefunction(MorphableModel.apply_adaptation)
    assert list(inspect.signature(MorphableModel.load_kernel).parameters) == [
        "self",
        "layer_name",
        "seed_idx",
        "artifact_id",
    ]


async def test_the_real_library_gives_what_the_forge_stored(tmp_path: Path) -> None:
    host = ZOO["resnet"]
    async with await KernelManager.open(tmp_path / "library") as library:
        model = wrap(host.model(), example=host.batch().x, library=library)
        ir = REGISTRY.build("gated_conv", placement_of(model).place("layer1.0").site())
        data, kernel_id = kernel_for(model, "layer1.0", "gated_conv")
        await library.submit(request_for(ir))
        job = await library.claim("worker", lease_s=60)
        assert job is not None
        artifact = artifact_of(job.blueprint_id, data)
        await library.complete(job.job_id, "worker", artifact, verdict_on(artifact))
        assert artifact.artifact_id == kernel_id
        assert isinstance(model, MorphableModel)
        await model.load_kernel("layer1.0", 2, kernel_id)
        with pytest.raises(NotFound):
            await model.load_kernel("layer1.0", 0, "sha256:" + "0" * 64)
    assert [(entry.slot, entry.seed_idx) for entry in topology(model)] == [("layer1.0", 2)]


async def test_without_a_library_the_error_says_what_to_give() -> None:
    model = wrapped(ZOO["mlp"])
    assert isinstance(model, MorphableModel)
    with pytest.raises(ConfigError, match=r"no library to load from.*library=, or attach a run"):
        await model.load_kernel("fc1", 0, "sha256:0")


async def test_an_unknown_slot_or_kernel_changes_nothing() -> None:
    model, shelf, kernel_id = ready()
    with pytest.raises(NotFound, match="slots are fc1, fc2"):
        await model.load_kernel("fc9", 0, kernel_id)
    assert shelf.asked == []
    with pytest.raises(NotFound, match="sha256:1"):
        await model.load_kernel("fc1", 0, "sha256:1")
    with pytest.raises(NotFound, match="it makes the model's own output"):
        await model.load_kernel("head", 0, kernel_id)
    assert topology(model) == ()
    assert states(model) == {}


async def test_before_the_first_forward_the_error_says_so() -> None:
    _, shelf, kernel_id = ready()
    model = wrap(ZOO["mlp"].model(), library=shelf)
    assert isinstance(model, MorphableModel)
    with pytest.raises(NotFound, match="run the model once, or give wrap an example="):
        await model.load_kernel("fc1", 0, kernel_id)
    model(ZOO["mlp"].batch().x)  # type: ignore[operator]
    await model.load_kernel("fc1", 0, kernel_id)


async def test_a_kernel_that_cannot_join_leaves_its_seed_dormant() -> None:
    model, shelf, kernel_id = ready()
    shelf.kernels[kernel_id] = shelf.kernels[kernel_id] + b"\0"
    with pytest.raises(KernelRejected, match="digest"):
        await model.load_kernel("fc1", 0, kernel_id)
    assert topology(model) == ()
    assert states(model) == {("fc1", 0): ["germinated", "cancelled", "embargoed", "dormant"]}
    assert placement_of(model).seeds[("fc1", 0)].state is SeedState.DORMANT


async def test_a_seed_is_taken_once_even_by_two_at_the_same_time() -> None:
    model, _, kernel_id = ready()
    results = await asyncio.gather(
        model.load_kernel("fc1", 0, kernel_id), model.load_kernel("fc1", 0, kernel_id), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), IllegalTransition]
    with pytest.raises(Conflict):
        await model.load_kernel("fc1", 0, kernel_id)
    assert len(topology(model)) == 1


async def test_an_adaptation_is_carried_out_where_it_asks_for_a_kernel() -> None:
    model, shelf, kernel_id = ready()
    assert not await model.apply_adaptation(AdaptationSignal(requires_adaptation=True))
    assert not await model.apply_adaptation(signal(kernel_id, action=Action.NONE))
    asked = signal(kernel_id).model_copy(update={"requires_adaptation": False})
    assert not await model.apply_adaptation(asked)
    assert shelf.asked == []
    assert await model.apply_adaptation(signal(kernel_id)) is True
    assert [(entry.slot, entry.seed_idx) for entry in topology(model)] == [("fc1", 1)]
    with pytest.raises(NotFound):
        await model.apply_adaptation(signal("sha256:2", slot="fc2"))


async def test_while_a_run_is_attached_it_does_the_grafting() -> None:
    class Run:
        def __init__(self) -> None:
            self.asked: list[tuple[str, int, str]] = []

        async def graft_kernel(self, layer_name: str, seed_idx: int, kernel_id: str) -> None:
            self.asked.append((layer_name, seed_idx, kernel_id))

    model, shelf, kernel_id = ready()
    run = Run()
    placement_of(model).grower = run
    await model.load_kernel("fc1", 0, kernel_id)
    assert await model.apply_adaptation(signal(kernel_id))
    assert run.asked == [("fc1", 0, kernel_id), ("fc1", 1, kernel_id)]
    assert shelf.asked == []
    assert topology(model) == ()
