"""What cannot be folded is refused with the reason, and what a host reads of a layer stays."""

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from esper.blueprints import register_body
from esper.blueprints.bodies import unregister_body
from esper.errors import ConfigError, Rejected
from esper.ir import ops
from esper.ir.spec import OpSpec
from esper.kasmina import fold, wrap
from esper.kasmina.folding.fold import difference
from esper.testing.zoo import ZOO
from tests.laws.support import graft, wrapped
from tests.unit.kasmina.folding import (
    PADDED,
    TOKENS,
    drawn,
    grown,
    model_with,
    stir,
)


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
