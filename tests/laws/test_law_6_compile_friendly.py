"""Law 6: ramping a graft never recompiles, a graft costs at most one regional recompile, a same-shaped swap none."""

import copy
from collections.abc import Callable
from itertools import product

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import nn
from torch._dynamo.eval_frame import _debug_get_cache_entry_list

from esper.kasmina import Graft, compile_regions, detach, placement_of, set_active, wrap
from esper.testing.zoo import ZOO, ResidualBlock, ZooHost
from tests.laws.compiled import (
    Backend,
    Counting,
    aot_eager,
    block_by_block,
    by_slots,
    compiled,
    first_blueprint,
    in_place,
    nothing_compiled,
    whole,
)
from tests.laws.support import EVERY_HOST, graft, output, same, wrapped

__all__ = ["nothing_compiled"]
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
"""Dynamo's own look at its inputs; it silences that itself, but not where warnings are errors."""

Way = Callable[[nn.Module, Backend], None]
BUILT_IN = ("nested_sequential", "sequential_slots", "dropout")
"""Hosts that are one of torch's own containers, of which ``module.compile()`` compiles nothing."""
QUICK = {
    by_slots: ("mlp", "residual_mlp", "conv1d", "sequential_slots", "shared", "recurrent"),
    whole: ("nested_sequential",),
    in_place: ("mlp",),
    block_by_block: ("residual_mlp",),
}


def hosts_and_ways(*ways: Way) -> list[ParameterSet]:
    """Return every host with every way of compiling it; all but a few are slow."""
    return [
        pytest.param(
            host, way, id=f"{host.name}-{way.__name__}", marks=() if host.name in QUICK[way] else pytest.mark.slow
        )
        for way in ways
        for host in ZOO.values()
    ]


def logits(model: nn.Module, host: ZooHost) -> torch.Tensor:
    return output(model, host.batch()).detach()


def ramp(model: nn.Module, values: tuple[float, ...]) -> list[Graft]:
    grafts = [module for module in model.modules() if isinstance(module, Graft)]
    for value in values:
        for each in grafts:
            each.alpha.fill_(value)
    return grafts


@pytest.mark.parametrize(("host", "way"), hosts_and_ways(by_slots, whole, in_place, block_by_block))
def test_the_life_of_a_graft_recompiles_its_region_once(host: ZooHost, way: Way) -> None:
    model, backend = compiled(host, way)
    slot = next(iter(placement_of(model).slots))
    blueprint, batch = first_blueprint(model, slot), host.batch()

    def compiles() -> int:
        """Train a step, and return how many graphs were compiled for it."""
        before = backend.count
        host.loss(model, batch).backward()
        return backend.count - before

    dormant = compiles()
    if way in (by_slots, whole) and host.name != "recurrent":
        assert dormant > 0
    assert compiles() == 0

    graft(model, slot, blueprint)
    assert compiles() == 1
    for alpha in (0.25, 0.5, 1.0):
        assert ramp(model, (alpha,))
        assert compiles() == 0

    detach(model, slot, 0)
    assert compiles() == 0, "the code from before the graft serves again"
    graft(model, slot, blueprint, seed=7)
    assert compiles() == 0, "other weights of the same shape"

    set_active(model, slot, 0, False)
    assert compiles() <= 1
    set_active(model, slot, 0, True)
    assert compiles() == 0
    set_active(model, slot, 0, False)
    assert compiles() == 0
    assert backend.count > 0


@pytest.mark.parametrize(("host", "way"), hosts_and_ways(by_slots, in_place))
def test_a_dormant_host_has_the_graphs_and_the_guards_that_it_had_unwrapped(host: ZooHost, way: Way) -> None:
    plain, backends = host.model(), (Counting(), Counting())
    model = wrapped(host)
    names = list(placement_of(model).slots)
    if way is by_slots:
        compile_regions(plain, names, backend=backends[0])
        compile_regions(model, names, backend=backends[1])
    else:
        plain.compile(backend=backends[0])
        model.compile(backend=backends[1])
    for each in (plain, model):
        torch._dynamo.reset()
        host.loss(each, host.batch()).backward()
    assert backends[0].codes == backends[1].codes
    if way is by_slots or host.name not in (*BUILT_IN, "recurrent"):
        assert backends[0].count > 0


def guards_of(model: nn.Module, host: ZooHost) -> int:
    torch._dynamo.reset()
    host.loss(model, host.batch()).backward()
    entries = _debug_get_cache_entry_list(type(model).forward.__code__)
    assert len(entries) == 1
    return len(str(entries[0].guard_manager).splitlines())


@pytest.mark.parametrize("name", ["mlp", "residual_mlp", "conv1d", "resnet", "depthwise", "transformer", "shared"])
def test_a_dormant_host_has_no_more_guards_than_unwrapped(name: str) -> None:
    host = ZOO[name]
    plain, model = host.model(), wrapped(host)
    for each in (plain, model):
        each.compile(backend=Counting())
    assert guards_of(model, host) == guards_of(plain, host)


@pytest.mark.parametrize(("host", "way"), hosts_and_ways(by_slots, whole))
def test_a_newborn_is_neutral_in_compiled_code_and_computes_what_it_does_eagerly(host: ZooHost, way: Way) -> None:
    model, backend = compiled(host, way, aot_eager())
    model.eval()
    before, count = logits(model, host), backend.count
    for slot in placement_of(model).slots:
        graft(model, slot, first_blueprint(model, slot))
    assert float((logits(model, host) - before).abs().max()) <= 1e-6
    assert backend.count > count
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model.train()
    for seed in range(2):
        optimizer.zero_grad()
        host.loss(model, host.batch(seed=seed)).backward()
        optimizer.step()
    fast = logits(model.eval(), host)
    assert not torch.equal(fast, before)
    with torch.compiler.set_stance("force_eager"):
        assert float((fast - logits(model, host)).abs().max()) <= 1e-5


@EVERY_HOST
@pytest.mark.parametrize("way", [by_slots, whole])
def test_keys_stay_what_they_were(host: ZooHost, way: Way) -> None:
    model, _ = compiled(host, way)
    assert list(model.state_dict()) == list(host.model().state_dict())
    slot = next(iter(placement_of(model).slots))
    graft(model, slot, first_blueprint(model, slot))
    host.model().load_state_dict({k: v for k, v in model.state_dict().items() if "esper_grafts" not in k})


class Tower(nn.Module):
    """Twelve blocks of one class, whose compiled code dynamo keeps in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(8) for _ in range(12))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.head(x)
        return result


COMBINATIONS = [c for length in (1, 2, 3) for c in product(("mlp_adapter", "gated_mlp"), repeat=length)][:12]


def grow_all(model: nn.Module, x: torch.Tensor) -> None:
    """Graft a different combination of blueprints at every block, training in between."""
    for index, combination in enumerate(COMBINATIONS):
        for seed_idx, blueprint in enumerate(combination):
            graft(model, f"blocks.{index}", blueprint, seed_idx=seed_idx)
        model(x).sum().backward()


SLOW = [pytest.param(way, marks=pytest.mark.slow) for way in (in_place, whole)]


@pytest.mark.parametrize("way", [by_slots, block_by_block, *SLOW])
def test_twelve_different_grafts_at_twelve_blocks_of_one_class_are_all_compiled(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    model, backend = wrap(Tower(), example=x), Counting()
    way(model, backend)
    model(x).sum().backward()
    dormant = backend.count
    grow_all(model, x)
    assert backend.count == dormant + 12
    model.eval()
    model(x)
    assert "recompile_limit" not in caplog.text
    with torch.compiler.set_stance("fail_on_recompile"):
        model(x)
    runs = [0]
    hook = nn.modules.module.register_module_forward_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    try:
        model(x)
    finally:
        hook.remove()
    assert runs[0] <= 14, "only what is not compiled runs hooks: the model, its head and the regions themselves"


def test_without_room_for_growth_dynamo_falls_back_to_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trap is real: what the test above guards against happens on its own."""
    monkeypatch.setattr("esper.kasmina.graft.make_room", lambda _: None)
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    model, backend = wrap(Tower(), example=x), Counting()
    block_by_block(model, backend)
    model(x).sum().backward()
    dormant = backend.count
    grow_all(model, x)
    assert backend.count < dormant + 12


def test_other_batch_sizes_and_modes_cost_one_recompile_each_and_then_none() -> None:
    host = ZOO["residual_mlp"]
    model, backend = compiled(host, in_place)
    x = host.batch().x
    sizes = [x, x[:4], x[:3], x[:5]]

    def compiles(inputs: torch.Tensor) -> int:
        before = backend.count
        model(inputs).sum().backward()
        return backend.count - before

    assert [compiles(size) for size in sizes] == [1, 1, 0, 0]
    graft(model, "blocks.1", "gated_mlp")
    assert [compiles(size) for size in sizes] == [1, 0, 0, 0]
    model.eval()
    with torch.no_grad():
        before = backend.count
        model(x)
        model(x[:2])
    assert backend.count - before <= 1
    model.train()
    assert [compiles(size) for size in sizes] == [0, 0, 0, 0]


def test_a_deep_copy_is_not_compiled_and_computes_the_same() -> None:
    host = ZOO["sequential_slots"]
    model, backend = compiled(host, by_slots)
    graft(model, "1", first_blueprint(model, "1"))
    host.loss(model, host.batch())
    twin = copy.deepcopy(model)
    count = backend.count
    assert torch.equal(output(twin.eval(), host.batch()), output(model.eval(), host.batch()))
    assert not any(module._compiled_call_impl for module in twin.modules())
    assert same(twin.state_dict(), model.state_dict())
    assert backend.count >= count
