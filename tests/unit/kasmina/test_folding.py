"""A folded model computes what the grown one did, goes on training, and knows nothing of Esper."""

import copy
import importlib
import io
import pickle
import pickletools
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

import esper.testing.zoo
from esper.blueprints import KernelModule, pack_kernel, register_body
from esper.blueprints.bodies import unregister_body
from esper.errors import ConfigError, Rejected
from esper.ir import BlueprintIR, Graph, Handle, Layout, Site, digest_of, ops
from esper.ir.builder import build
from esper.ir.spec import OpSpec
from esper.kasmina import Slot, fold, join, set_active, wrap
from esper.kasmina.folding.bodies import RULES
from esper.kasmina.folding.fold import difference
from esper.kasmina.folding.steps import Step, steps_of
from esper.kasmina.grafted import Graft
from esper.kasmina.incubation import Incubation, plant
from esper.testing.blueprints import blueprints, random_input, random_weights
from esper.testing.zoo import ZOO, Batch, ZooHost
from tests.laws.support import EVERY_HOST, EVERY_PLACE, graft, output, wrapped

PADDED = "torch_transformer"


def grown(host: ZooHost, slot: str, *names: str) -> nn.Module:
    """Return a model with grafts that have learned something, the first of them at 0.7 of its strength."""
    model = wrapped(host)
    for seed_idx, name in enumerate(names):
        stir(graft(model, slot, name, seed_idx=seed_idx, seed=seed_idx).kernel)
    model.get_submodule(f"{slot}.esper_grafts.0").alpha.fill_(0.7)
    return model


def stir(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


@contextmanager
def padding_may_be_warned_of(name: str) -> Iterator[None]:
    with warnings.catch_warnings():
        if name == PADDED:
            warnings.filterwarnings("ignore", message="encoder computes positions")
        yield


def folded(model: nn.Module, host: ZooHost) -> nn.Module:
    with padding_may_be_warned_of(host.name):
        return fold(model, host.batch().x)


def names_in(data: bytes) -> set[str]:
    """Return every module that a pickle imports from, and every text in it."""
    found = {str(argument) for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)}
    return {name for name in found if "esper" in name}


# -- it is the same model ------------------------------------------------------------------------------------------------


@EVERY_PLACE
def test_every_host_folds_at_every_slot_with_every_blueprint(name: str, slot: str, blueprints: tuple[str, ...]) -> None:
    host = ZOO[name]
    for blueprint in blueprints:
        model = grown(host, slot, blueprint, "mlp_adapter")
        keys, classes = list(model.state_dict()), [type(module) for module in model.modules()]
        alone = folded(model, host)
        assert (list(model.state_dict()), [type(module) for module in model.modules()]) == (keys, classes)
        assert isinstance(alone.get_submodule(slot), GraphModule)
        for mode in (True, False):
            left, right = (output(each.train(mode), host.batch(seed=1)) for each in (model, alone))
            assert difference(left, right) <= 1e-6, (blueprint, mode)
        assert not [module for module in alone.modules() if "esper" in type(module).__module__.replace("testing", "")
                    and type(module).__module__ != "esper.testing.zoo"]  # fmt: skip
        assert not [attribute for module in alone.modules() for attribute in vars(module) if "esper" in attribute]


@EVERY_HOST
def test_a_folded_model_trains_as_the_grown_one_would(host: ZooHost) -> None:
    model = wrapped(host)
    for slot in list(model.esper.graph()):
        stir(graft(model, str(slot["slot"]), "mlp_adapter").kernel)
    alone = folded(model, host)
    assert len(list(alone.parameters())) == len(list(model.parameters()))
    steps = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (model, alone)]
    for seed in range(3):
        batch = host.batch(seed=seed)
        losses = []
        for each, step in zip((model, alone), steps, strict=True):
            step.zero_grad()
            torch.manual_seed(seed)
            loss = host.loss(each, batch)
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in each.parameters() if p.requires_grad)
            step.step()
            losses.append(loss.detach())
        assert difference(*losses) <= 1e-5
    assert difference(output(model.eval(), host.batch(seed=9)), output(alone.eval(), host.batch(seed=9))) <= 1e-5


@EVERY_HOST
def test_copies_of_a_folded_model_are_the_same_model(host: ZooHost) -> None:
    model = wrapped(host)
    slots = [str(slot["slot"]) for slot in model.esper.graph()]
    for slot in slots:
        stir(graft(model, slot, "gated_mlp").kernel)
    alone = folded(model, host).eval()
    again = copy.deepcopy(alone)
    assert list(again.state_dict()) == list(alone.state_dict())
    assert torch.equal(output(again, host.batch()), output(alone, host.batch()))
    double = copy.deepcopy(alone).double()
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    if host.shape is not None:
        assert difference(double(host.batch(dtype=torch.float64).x), alone(host.batch().x)) <= 1e-5


def test_a_model_without_grafts_folds_to_its_host() -> None:
    host = ZOO["resnet"]
    alone = fold(wrapped(host))
    assert [type(module) for module in alone.modules()] == [type(module) for module in host.model().modules()]
    assert list(alone.state_dict()) == list(host.model().state_dict())


def test_names_of_what_is_folded_are_those_that_the_documentation_gives() -> None:
    host = ZOO["mlp"]
    alone = folded(grown(host, "fc1", "mlp_adapter"), host)
    assert list(alone.state_dict()) == [
        "fc1.weight", "fc1.bias", "fc1.grafts.0.layer_norm1.weight", "fc1.grafts.0.layer_norm1.bias",
        "fc1.grafts.0.linear1.weight", "fc1.grafts.0.linear1.bias", "fc1.grafts.0.linear2.weight",
        "fc1.grafts.0.linear2.bias", "fc2.weight", "fc2.bias", "head.weight", "head.bias",
    ]  # fmt: skip
    block = folded(grown(ZOO["residual_mlp"], "blocks.1", "mlp_adapter"), ZOO["residual_mlp"])
    assert "blocks.1.host.fc.weight" in block.state_dict()
    assert "blocks.0.fc.weight" in block.state_dict()


def test_a_seed_that_is_off_or_ablated_is_left_out_and_one_that_is_frozen_stays_frozen() -> None:
    host = ZOO["mlp"]
    model = grown(host, "fc1", "mlp_adapter", "gated_mlp", "mlp_adapter")
    set_active(model, "fc1", 0, False)
    model.get_submodule("fc1.esper_grafts.1").alpha.fill_(0.0)
    model.get_submodule("fc1.esper_grafts.2").requires_grad_(False)
    alone = folded(model, host)
    seeds = {name.split(".")[2] for name, _ in alone.named_parameters() if "grafts" in name}
    assert seeds == {"2"}
    assert not any(p.requires_grad for name, p in alone.named_parameters() if "grafts" in name)
    assert difference(output(model.eval(), host.batch()), output(alone.eval(), host.batch())) <= 1e-6


@pytest.mark.parametrize("with_graft", [False, True])
def test_what_learns_apart_is_left_out_without_a_trace(with_graft: bool) -> None:
    host = ZOO["residual_mlp"]
    model = grown(host, "blocks.1", "mlp_adapter") if with_graft else wrapped(host)
    kernel = copy.deepcopy(grown(host, "blocks.1", "gated_mlp").get_submodule("blocks.1.esper_grafts.0.kernel"))
    plant(model, "blocks.1", 1, Incubation(kernel, "", "gated_mlp"))
    alone = folded(model, host)
    assert isinstance(alone.get_submodule("blocks.1"), GraphModule) == with_graft
    assert difference(output(model.eval(), host.batch()), output(alone.eval(), host.batch())) <= 1e-6
    assert not [name for name in names_in(pickle.dumps(alone)) if name != "esper.testing.zoo"]
    assert not [name for module in alone.modules() for name in vars(module) if "esper" in name]


def test_the_strength_of_a_path_becomes_part_of_its_last_linear_map() -> None:
    host = ZOO["mlp"]
    model = grown(host, "fc1", "mlp_adapter")
    alone = folded(model, host)
    last = model.get_submodule("fc1.esper_grafts.0.kernel.linear2")
    torch.testing.assert_close(alone.get_submodule("fc1.grafts.0.linear2").weight, 0.7 * last.weight)
    assert "mul" not in alone.get_submodule("fc1").code


def test_nothing_is_drawn_and_gradients_in_flight_stay_with_the_model() -> None:
    host = ZOO["resnet"]
    model = grown(host, "layer1.0", "gated_conv")
    host.loss(model, host.batch()).backward()
    before = torch.get_rng_state()
    alone = fold(model, host.batch().x)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in alone.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_fold(dtype: torch.dtype) -> None:
    host = ZOO["padded_conv"]
    model = wrapped(host, dtype=dtype)
    stir(graft(model, "conv2", "conv_bottleneck").kernel)
    alone = fold(model)
    assert {p.dtype for p in alone.parameters()} == {dtype}
    x = host.batch(dtype=dtype).x
    assert difference(model.eval()(x), alone.eval()(x)) <= (1e-6 if dtype is torch.float64 else 0.02)


def test_under_autocast_the_sum_has_the_type_of_the_host() -> None:
    host = ZOO["residual_mlp"]
    model = grown(host, "blocks.1", "mlp_adapter").eval()
    alone = folded(model, host)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        left, right = model(host.batch().x), alone(host.batch().x)
    assert left.dtype is right.dtype
    assert difference(left, right) <= 0.02


def test_the_map_of_a_frozen_host_that_lies_channels_last_is_differentiated() -> None:
    host = ZOO["channels_last"]
    model = grown(host, "layer1.0", "gated_conv").requires_grad_(False)
    model.get_submodule("layer1.0.esper_grafts").requires_grad_(True)
    alone = folded(model, host)
    host.loss(alone, host.batch()).backward()  # torch itself crashes here with a group norm that has weights
    host.loss(model, host.batch()).backward()
    pairs = {name.replace(".kernel.", ".").replace("esper_grafts", "grafts"): p for name, p in model.named_parameters()}
    for name, parameter in alone.named_parameters():
        if parameter.requires_grad and "conv3" not in name:  # conv3 has taken the strength in
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, pairs[name].grad, rtol=1e-3, atol=1e-5)


# -- every operation -----------------------------------------------------------------------------------------------------


def test_every_operation_of_the_closed_set_can_be_folded() -> None:
    assert sorted(RULES) == sorted(name for name in ops.names() if ops.get(name).trusted)


def model_with(ir: BlueprintIR, *, alpha: float = 1.0, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a model that is one blueprint on its input, in float64, and an input."""
    weights = {name: torch.from_numpy(value) for name, value in random_weights(ir, seed).items()}
    x = torch.from_numpy(random_input(ir, batch=3, extent=5, seed=seed))
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model.register_buffer("kind", torch.zeros((), dtype=torch.float64))
    wrap(model, Slot("0", layout=ir.layout), example=x)
    data = pack_kernel(ir, weights, seed=0)
    join(model, "0", 0, data, kernel_id=digest_of(data), alpha=alpha)
    return model, x


def drawn(layout: Layout, draw: Callable[[Graph], Handle], channels: int = 4) -> BlueprintIR:
    return build(lambda g, site: draw(g), Site(layout, channels), "drawn")


BATCH_NORM = drawn(Layout.CHANNELS_2D, lambda g: g.conv(g.batch_norm(g.input), out=4, kernel=3))


@given(ir=blueprints(), alpha=st.sampled_from([1.0, 0.5, -2.0]), training=st.booleans(), seed=st.integers(0, 9))
@example(ir=BATCH_NORM, alpha=1.0, training=True, seed=0)
@settings(max_examples=80, deadline=None)
def test_random_blueprints_fold_in_both_modes(ir: BlueprintIR, alpha: float, training: bool, seed: int) -> None:
    model, x = model_with(ir, alpha=alpha, seed=seed)
    alone = fold(model)
    x.requires_grad_(True)
    for _ in range(2):  # running statistics move alike
        left, right = model.train(training)(x), alone.train(training)(x)
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(model.eval()(x), alone.eval()(x), rtol=1e-7, atol=1e-7)
    given_back = [torch.autograd.grad(each(x).square().sum(), x)[0] for each in (model, alone)]
    torch.testing.assert_close(*given_back, rtol=1e-6, atol=1e-6)
    assert sum(p.numel() for p in alone.parameters()) <= sum(p.numel() for p in model.parameters())


def merged(ir: BlueprintIR, alpha: float = 1.0) -> tuple[Step, ...]:
    model, x = model_with(ir, alpha=alpha)
    graft = model.get_submodule("0.esper_grafts.0")
    assert isinstance(graft, Graft)
    torch.testing.assert_close(model(x), fold(model)(x), rtol=1e-9, atol=1e-9)
    kernel = graft.kernel
    assert isinstance(kernel, KernelModule)
    return steps_of(kernel, alpha)


TOKENS, IMAGES = Layout.TOKENS, Layout.CHANNELS_2D
MERGES: dict[str, tuple[Layout, Callable[[Graph], Handle], list[str]]] = {
    "two linears": (TOKENS, lambda g: g.linear(g.linear(g.input, out=9), out=4), ["linear"]),
    "three linears": (TOKENS, lambda g: g.linear(g.linear(g.linear(g.input, out=8), out=8), out=4), ["linear"]),
    "a scale before": (TOKENS, lambda g: g.linear(g.scale(g.input, value=0.5), out=4), ["linear"]),
    "a scale after": (TOKENS, lambda g: g.scale(g.linear(g.input, out=4), value=0.5), ["linear"]),
    "two scales": (TOKENS, lambda g: g.scale(g.scale(g.input, value=0.5), value=3.0), ["scale"]),
    "a 1x1 after": (IMAGES, lambda g: g.conv(g.conv(g.input, out=6, kernel=3), out=4, kernel=1), ["conv"]),
    "a 1x1 without bias before": (
        IMAGES, lambda g: g.conv(g.conv(g.input, out=6, kernel=1, bias=False), out=4, kernel=3), ["conv"],
    ),
    "a 1x1 before a padding that copies": (
        IMAGES,
        lambda g: g.conv(g.conv(g.input, out=6, kernel=1), out=4, kernel=3, padding_mode="reflect"),
        ["conv"],
    ),
    "a 1x1 whose bias would be missing at the border": (
        IMAGES, lambda g: g.conv(g.conv(g.input, out=6, kernel=1), out=4, kernel=3), ["conv", "conv"],
    ),
    "groups": (
        IMAGES,
        lambda g: g.conv(g.conv(g.input, out=4, kernel=3, groups=2), out=4, kernel=1),
        ["conv", "conv"],
    ),
    "two 3x3": (IMAGES, lambda g: g.conv(g.conv(g.input, out=4, kernel=3), out=4, kernel=3), ["conv", "conv"]),
    "a bottleneck that is cheaper in two": (
        TOKENS, lambda g: g.linear(g.linear(g.input, out=1), out=4), ["linear", "linear"],
    ),
    "a nonlinearity between": (
        TOKENS, lambda g: g.linear(g.tanh(g.linear(g.input, out=9)), out=4), ["linear", "tanh", "linear"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGES)
def test_linear_neighbours_become_one_where_that_is_right_and_no_larger(case: str) -> None:
    layout, draw, left = MERGES[case]
    assert [step.op for step in merged(drawn(layout, draw))] == left


def test_a_value_that_is_used_twice_is_not_merged_away() -> None:
    def twice(g: Graph) -> Handle:
        value = g.linear(g.input, out=4)
        return g.add(g.linear(value, out=4), value)

    assert [step.op for step in merged(drawn(TOKENS, twice))] == ["linear", "linear", "add"]
    assert [step.op for step in merged(drawn(TOKENS, twice), alpha=0.5)] == ["linear", "linear", "add", "scale"]


def test_an_extension_is_refused_with_the_reason() -> None:
    ops.register(OpSpec("users.shrink"))
    register_body("users.shrink", shrink)
    try:
        model, _ = model_with(drawn(TOKENS, lambda g: g.linear(g.apply("users.shrink", g.input), out=4)))
        with pytest.raises(ConfigError, match=r"ESP-2610.*'users.shrink' cannot be folded: it is an extension"):
            fold(model)
    finally:
        unregister_body("users.shrink")
        ops.unregister("users.shrink")


def shrink(use: object, tensors: object) -> Callable[[Tensor], Tensor]:
    return lambda x: 0.5 * x


# -- hosts that ask for care ---------------------------------------------------------------------------------------------


class Reads(nn.Module):
    """Reads of its layers what hosts commonly read."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4, bias=False)
        self.parts = [self.fc]  # known to Python alone
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        assert self.fc.bias is None
        assert self.fc.out_features == 4
        y = self.parts[0](x.to(self.fc.weight.dtype))
        return self.head(y + nn.functional.linear(x, self.fc.weight))


def test_what_a_host_reads_of_a_layer_and_how_it_reaches_it_stay_as_they_were() -> None:
    model, x = wrap(Reads(), "fc", example=torch.randn(3, 4)), torch.randn(3, 4)
    stir(graft(model, "fc", "mlp_adapter").kernel)
    alone = fold(model, x)
    assert alone.parts[0] is alone.fc
    for each in (alone, copy.deepcopy(alone), pickle.loads(pickle.dumps(alone))):
        assert difference(model(x), each(x)) <= 1e-6
        assert [name for name in each.state_dict() if "grafts" not in name] == ["fc.weight", "head.weight", "head.bias"]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.factor = nn.Linear(4, 4), 2.0

    def forward(self, x: Tensor, *, times: int = 1) -> Tensor:
        return self.fc(x) * self.factor * times


class Nosy(nn.Module):
    """Reads of a block what a graph does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Scaled(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x, times=3) / self.block.factor)


def test_a_host_that_reads_what_a_graph_does_not_hold_is_refused_on_its_example_and_fails_without() -> None:
    x = torch.randn(3, 4)
    model = wrap(Nosy(), "block", example=x)
    stir(graft(model, "block", "mlp_adapter").kernel)
    with pytest.raises(ConfigError, match=r"ESP-2602.*AttributeError.*factor"):
        fold(model, x)
    with pytest.raises(AttributeError, match="factor"):
        fold(model)(x)


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, *more: Tensor, **flags: float) -> Tensor:
        return self.fc(x) * flags["times"] + sum(more)


class Passes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Anything(), nn.Linear(4, 2)

    def forward(self, x: Tensor, times: float = 2.0) -> Tensor:
        return self.head(self.block(x, x, times=times))


def test_a_module_that_takes_anything_needs_an_example_of_what() -> None:
    x = torch.randn(3, 4)
    model = wrap(Passes(), "block", example=x)
    stir(graft(model, "block", "mlp_adapter").kernel)
    with pytest.raises(ConfigError, match=r"ESP-2612: block .*'\*more: torch.Tensor'.*example="):
        fold(model)
    alone = fold(model, x)
    for times in (2.0, 5.0):
        assert difference(model(x, times), alone(x, times)) <= 1e-6


def test_an_argument_that_cannot_be_written_down_is_refused() -> None:
    class Odd(nn.Linear):
        def forward(self, x: Tensor, kind: torch.dtype = torch.float32) -> Tensor:
            return super().forward(x.to(kind))

    model = nn.Sequential(Odd(4, 4), nn.Linear(4, 2))
    wrap(model, "0", example=torch.randn(3, 4))
    graft(model, "0", "mlp_adapter")
    with pytest.raises(ConfigError, match=r"ESP-2611: 0 .*kind has the default torch.float32"):
        fold(model)


def test_hooks_that_a_graph_would_lose_are_refused_and_those_before_the_forward_go_with_the_host() -> None:
    host = ZOO["mlp"]
    model = grown(host, "fc1", "mlp_adapter")
    model.get_submodule("fc1").register_forward_pre_hook(lambda module, args: (args[0] * module.in_features,))
    alone = fold(model, host.batch().x)
    assert "fc1.host.weight" in alone.state_dict()
    handle = model.get_submodule("fc1").register_forward_hook(lambda module, args, out: out)
    with pytest.raises(ConfigError, match=r"ESP-2613: fc1 .*forward_hooks"):
        fold(model)
    handle.remove()
    fold(model)


def test_padded_positions_of_torchs_encoder_are_said_to_be_computed() -> None:
    host = ZOO[PADDED]
    model = grown(host, "encoder.layers.1", "mlp_adapter").eval()
    with pytest.warns(UserWarning, match="encoder computes positions that a src_key_padding_mask hides"):
        alone = fold(model, host.batch().x)
    padding = torch.zeros(6, 5, dtype=torch.bool)
    padding[1:, 3:] = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of nested tensors")
        left, right = model(host.batch().x, padding), alone(host.batch().x, padding)
    assert difference(left[~padding], right[~padding]) <= 1e-5


def test_a_copy_that_computes_something_else_is_refused() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return (
                self.fc(x) if type(self.fc).__name__ != "Linear" or hasattr(self.fc, "kernel") else self.fc(x) + count()
            )

    calls = iter(range(100))

    def count() -> int:
        return next(calls)

    model = wrap(Fickle(), "fc", example=torch.randn(3, 4))
    graft(model, "fc", "mlp_adapter")
    with pytest.raises(Rejected, match="ESP-7410: the folded model computes something else"):
        fold(model, torch.randn(3, 4))


def test_a_model_that_is_not_wrapped_or_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ConfigError, match="ESP-2101"):
        fold(nn.Linear(2, 2))
    model = wrapped(ZOO["mlp"])
    model.cache = model.fc1.weight * 2
    with pytest.raises(ConfigError, match="ESP-2601: the model cannot be copied"):
        fold(model)


@pytest.mark.parametrize(
    ("left", "right", "gap"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.25),
        ([0.1], [0.2], 0.1),
        ([float("nan"), float("inf")], [float("nan"), float("inf")], 0.0),
        ([float("nan")], [1.0], float("inf")),
        ([float("inf")], [float("-inf")], float("inf")),
        ([1.0], [1.0, 1.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_a_difference_is_relative_to_what_is_large_and_misses_nothing(
    left: list[float], right: list[float], gap: float
) -> None:
    assert difference({"a": torch.tensor(left)}, (torch.tensor(right),)) == pytest.approx(gap)


# -- without Esper -------------------------------------------------------------------------------------------------------

LOADING = """
import sys
forbidden = []
class Forbids:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "esper":
            forbidden.append(name)
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Forbids())
sys.path += [{folder!r}, {packages!r}]
try:
    import esper
except ImportError:
    forbidden.clear()
else:
    raise SystemExit("esper is here")
import torch
torch.set_num_threads(1)
for name, (model, x, y) in torch.load({file!r}, weights_only=False).items():
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, rtol=1e-6, atol=1e-6)
    assert "GraphModule" in str([type(m).__mro__ for m in model.modules()]), name
    model.train()
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters()), name
    print(name)
assert not forbidden, forbidden
"""


def own_hosts(folder: Path) -> ModuleType:
    """Import the hosts of the zoo from a file of the user's, which needs torch alone."""
    text = Path(esper.testing.zoo.__file__).read_text(encoding="utf-8")
    text = text.replace("from esper.kasmina.discovery import Wanted", "Wanted = object")
    text = text.replace(
        "from esper.kasmina.quiet import preserved_rng", "from contextlib import nullcontext as preserved_rng"
    )
    assert "import esper" not in text
    assert "from esper" not in text
    (folder / "own_hosts.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("own_hosts")
    finally:
        sys.path.remove(str(folder))
        del sys.modules["own_hosts"]


def test_folded_models_load_and_train_where_esper_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = own_hosts(tmp_path)
    monkeypatch.setitem(sys.modules, "own_hosts", hosts)
    saved: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    for name, host in hosts.ZOO.items():
        if name == "weight_normed":
            continue
        x = host.batch().x
        model = wrap(host.model(), host.slots, example=x)
        for slot in model.esper.graph():
            stir(graft(model, str(slot["slot"]), "mlp_adapter").kernel)
        alone = folded(model.eval(), host)
        saved[name] = (alone, x, model(x).detach())
        assert names_in(pickle.dumps(alone)) == set()
    file = tmp_path / "folded.pt"
    torch.save(saved, file)
    code = LOADING.format(folder=str(tmp_path), packages=sysconfig.get_path("purelib"), file=str(file))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(saved)


def test_a_grown_model_that_is_not_folded_names_esper() -> None:
    model = grown(ZOO["mlp"], "fc1", "mlp_adapter")
    assert any("kasmina" in name for name in names_in(pickle.dumps(model)))


def test_parametrized_hosts_are_folded_but_saved_by_their_state_alone() -> None:
    host = ZOO["weight_normed"]
    alone = folded(grown(host, "fc1", "mlp_adapter"), host)
    with pytest.raises(RuntimeError, match="parametrized modules is only supported through state_dict"):
        torch.save(alone, io.BytesIO())
    again = folded(grown(host, "fc1", "mlp_adapter"), host)
    again.load_state_dict(alone.state_dict())
    batch: Batch = host.batch()
    assert torch.equal(output(again.eval(), batch), output(alone.eval(), batch))
