"""Slots are found, named, and refused with a reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.ir import Layout
from esper.kasmina import Slot, placement_of, plan, wrap
from esper.kasmina.discovery import Wanted, run_example
from esper.testing.zoo import ZOO, BasicBlock, Block, Mlp, ResidualBlock
from tests.laws.support import graft, same, wrapped


def slots(name: str, wanted: Wanted) -> list[str]:
    return [place.name for place in plan(ZOO[name].model(), ZOO[name].batch().x, wanted).places]


@pytest.mark.parametrize(
    ("name", "wanted", "found"),
    [
        ("resnet", "layer[12].0", ["layer1.0", "layer2.0"]),
        ("resnet", ["layer2", "stem"], ["stem", "layer2"]),
        ("resnet", ["layer?.1", Slot("layer1.0")], ["layer1.0", "layer1.1", "layer2.1"]),
        ("resnet", BasicBlock, ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]),
        ("resnet", [BasicBlock, "head"], ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "head"]),
        ("transformer", "*.mlp", ["blocks.0.mlp", "blocks.1.mlp"]),
        ("transformer", Block, ["blocks.0", "blocks.1"]),
        ("transformer", ["embedding", "blocks.1.attention.out"], ["embedding", "blocks.1.attention.out"]),
        ("shared", "again", ["body"]),
        ("shared", ["body", "again", "stem"], ["stem", "body"]),
        ("mlp", Slot("fc2"), ["fc2"]),
    ],
)
def test_slots_are_asked_for_by_pattern_type_or_slot(name: str, wanted: Wanted, found: list[str]) -> None:
    assert slots(name, wanted) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("residual_mlp", ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]),
        ("nested_sequential", ["0", "1.0", "1.1"]),
        ("mlp", ["fc1", "fc2"]),
        ("conv1d", ["bn1", "bn2"]),
        ("shared", ["stem"]),
        ("recurrent", ["mix"]),
        ("torch_transformer", ["encoder.layers.0", "encoder.layers.1"]),
    ],
)
def test_auto_takes_repeated_blocks_then_nested_sequentials_then_single_layers(name: str, found: list[str]) -> None:
    assert slots(name, "auto") == found


class Towers(nn.Module):
    """Two of one class, each with blocks in a list; and two blocks on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = ZOO["residual_mlp"].model(), ZOO["residual_mlp"].model(seed=1)
        self.first, self.second = ResidualBlock(4), ResidualBlock(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.left(x) + self.right(x))))


def test_auto_looks_for_blocks_inside_what_is_there_twice() -> None:
    found = [place.name for place in plan(Towers(), torch.randn(3, 5)).places]
    towers = [f"{side}.blocks.{index}" for side in ("left", "right") for index in range(4)]
    assert found == [*towers, "first", "second"]


class Ending(nn.Module):
    """Two layers and something after the last one."""

    def __init__(self, end: str, trunk: bool = False) -> None:
        super().__init__()
        self.end = end
        self.fc = nn.Sequential(nn.Linear(5, 8), nn.ReLU()) if trunk else nn.Linear(5, 8)
        self.head = nn.Sequential(nn.Linear(8, 4)) if trunk else nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor] | tuple[Tensor, Tensor]:
        h = torch.relu(self.fc(x))
        y = self.head(h)
        ends = {"log_softmax": F.log_softmax(y, -1), "view": y.reshape(-1), "dict": {"y": y}, "tuple": (y, h)}
        return ends.get(self.end, y)


@pytest.mark.parametrize("trunk", [False, True], ids=["layers", "sequentials"])
@pytest.mark.parametrize("end", ["itself", "log_softmax", "view", "dict", "tuple"])
def test_auto_leaves_out_what_makes_the_models_own_output(end: str, trunk: bool) -> None:
    found = plan(Ending(end, trunk), torch.randn(3, 5))
    assert [place.name for place in found.places] == ["fc"]
    assert "it makes the model's own output" in found.refusals.values()


@pytest.mark.parametrize(
    ("name", "wanted", "reason"),
    [
        (
            "torch_transformer",
            "encoder.layers.0.linear1",
            "TransformerEncoderLayer skips its submodules on its fast path",
        ),
        ("torch_transformer", "encoder.layers.1.self_attn", "TransformerEncoderLayer skips its submodules"),
        ("residual_mlp", "blocks", "its forward is never called"),
        ("recurrent", "rnn", "its output is not one tensor"),
        (
            "conv1d",
            "conv1",
            "bn1 takes the mean of its channels away, so that a bias grown there would be dead; choose bn1",
        ),
        ("dropout", "2", "its layers do not tell where the channels are"),
    ],
)
def test_a_refusal_gives_its_reason(name: str, wanted: str, reason: str) -> None:
    host = ZOO[name]
    with pytest.raises(ConfigError) as refused:
        plan(host.model(), host.batch().x, wanted)
    assert f"{wanted}: {reason}" in str(refused.value)
    assert refused.value.code == "ESP-2212"
    assert "esper.plan" in refused.value.todo


def test_refused_slots_beside_good_ones_are_listed_not_raised() -> None:
    host = ZOO["recurrent"]
    found = plan(host.model(), host.batch().x, ["rnn", "mix"])
    assert [place.name for place in found.places] == ["mix"]
    assert found.refusals["rnn"] == "its output is not one tensor"


def test_auto_says_what_it_left_out() -> None:
    found = plan(ZOO["shared"].model(), ZOO["shared"].batch().x)
    assert found.refusals["body"] == found.refusals["again"] == "it is reached by several names"

    class Twice(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.fc2(self.fc2(self.fc1(x))))

    found = plan(Twice(), torch.randn(3, 5))
    assert found.refusals["fc2"] == "it runs 2 times in one pass; name it by hand to grow all uses at once"
    assert [place.name for place in plan(Twice(), torch.randn(3, 5), "fc2").places] == ["fc2"]


def test_whole_numbers_and_replaced_forwards_cannot_grow() -> None:
    class Rounded(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).long()

    model = nn.Sequential(Rounded(5, 8), nn.Linear(8, 2))
    model[1].forward = lambda x: x.double() @ torch.ones(8, 2, dtype=torch.float64)  # type: ignore[method-assign]
    with pytest.raises(ConfigError) as refused:
        plan(model, torch.randn(3, 5), ["0", "1"])
    assert "0: its output is of type torch.int64" in refused.value.why
    assert "1: its forward was replaced on the instance" in refused.value.why


def test_a_module_that_is_wrapped_on_its_own_is_refused() -> None:
    model = ZOO["resnet"].model()
    wrap(model.layer1, "0", example=torch.randn(2, 6, 6, 6))
    with pytest.raises(ConfigError, match=r"layer1: it is wrapped on its own; esper.unwrap it first"):
        plan(model, ZOO["resnet"].batch().x, "layer1")


def test_what_is_part_of_a_grown_model_is_not_wrapped_again() -> None:
    model = wrapped(ZOO["resnet"])
    graft(model, "layer1.0", "gated_conv")
    with pytest.raises(ConfigError, match="part of a wrapped model"):
        wrap(model.layer1[0])


def test_grafts_are_no_places_for_more() -> None:
    host = ZOO["resnet"]
    model = wrapped(host)
    before = plan(model, host.batch().x, "*")
    graft(model, "layer1.0", "gated_conv")
    assert [place.name for place in plan(model, host.batch().x, "*").places] == [place.name for place in before.places]
    assert [place.name for place in plan(model, host.batch().x).places] == list(placement_of(model).slots)


@pytest.mark.parametrize(
    ("wanted", "advice"),
    [
        ("layer3", "Did you mean layer"),
        (Slot("layer1.O"), "Did you mean layer1"),
        ("zzz", "Modules are stem, stem.0"),
        (nn.LSTM, "Modules are stem"),
        (["layer1.0", "leyer2.0"], "Did you mean layer2.0"),
        (Slot(""), "matches no module"),
    ],
    ids=str,
)
def test_what_matches_nothing_gets_near_matches_before_the_model_ever_ran(wanted: Wanted, advice: str) -> None:
    for attempt in (lambda: wrap(ZOO["resnet"].model(), wanted), lambda: slots("resnet", wanted)):
        with pytest.raises(ConfigError) as refused:
            attempt()
        assert advice in str(refused.value)
        assert refused.value.code == "ESP-2211"


def test_something_else_than_a_pattern_is_refused() -> None:
    with pytest.raises(ConfigError, match="slots has a int"):
        wrap(ZOO["mlp"].model(), [3])  # type: ignore[list-item]


def test_stages_are_runs_of_slots_of_one_shape() -> None:
    host = ZOO["resnet"]
    found = [(place.name, place.stage, place.order) for place in plan(host.model(), host.batch().x).places]
    assert found == [("layer1.0", 0, 0), ("layer1.1", 0, 1), ("layer2.0", 1, 2), ("layer2.1", 1, 3)]
    host = ZOO["padded_conv"]
    assert [place.stage for place in plan(host.model(), host.batch().x).places] == [0, 1, 2]


def test_slots_come_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.second, self.first = nn.Linear(8, 2), nn.Linear(8, 8), nn.Linear(5, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)))

    assert [place.name for place in plan(Backwards(), torch.randn(3, 5)).places] == ["first", "second"]


# -- the one watched pass --------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Replaces one buffer, writes into another, and has a module in another mode."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head, self.frozen = nn.Linear(5, 8), nn.Linear(8, 2), nn.BatchNorm1d(8).eval()
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("written", torch.zeros(2))
        self.register_buffer("absent", None)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.replaced = self.replaced + 1
        self.written.data.add_(1)
        return self.head(self.frozen(self.fc(x * scale)))


@pytest.mark.parametrize(
    "example",
    [torch.randn(3, 5), (torch.randn(3, 5), 2.0), {"x": torch.randn(3, 5), "scale": 2.0}],
    ids=["tensor", "tuple", "dict"],
)
def test_an_example_is_a_tensor_a_tuple_or_a_dict_and_leaves_no_trace(example: object) -> None:
    model = Counting()
    state, buffers = {k: v.clone() for k, v in model.state_dict().items()}, dict(model.named_buffers())
    modes = [module.training for module in model.modules()]
    run_example(model, example)
    assert same(model.state_dict(), state)
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(
    "example", [torch.ones(3, 4), (1, 2, 3), {"y": 1}, None, "text"], ids=["tensor", "tuple", "dict", "none", "text"]
)
def test_an_example_that_the_model_does_not_take_gets_the_reason_and_leaves_the_model_unwrapped(
    example: object,
) -> None:
    model = ZOO["mlp"].model()
    with pytest.raises(ConfigError) as refused:
        plan(model, example)
    assert refused.value.code == "ESP-2210"
    assert "one input batch as the training loop does" in refused.value.todo
    if example is not None:
        with pytest.raises(ConfigError):
            wrap(model, example=example)
    assert type(model) is Mlp
    assert model.training


def test_a_model_that_looks_things_up_gets_the_same_error() -> None:
    class Lookup(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["pixels"]

    with pytest.raises(ConfigError, match="does not run on the example: 'pixels'"):
        plan(Lookup(), ({"tokens": torch.zeros(1)},))


def test_lazy_modules_run_once_first() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match="run the model once first"):
        plan(model, torch.randn(3, 5))
    wrap(model)
    model(torch.randn(3, 5))
    assert list(placement_of(model).slots) == ["0"]
    assert type(model[0]) is nn.Linear


def test_watching_leaves_torch_on_its_fast_path() -> None:
    host = ZOO["torch_transformer"]
    model = host.model()
    record = run_example(model, host.batch().x)
    assert model.encoder.layers[0] in record.sightings
    assert model.encoder.layers[0].linear1 not in record.sightings


def test_modules_of_other_models_are_not_watched() -> None:
    other = nn.Linear(8, 8)

    class Borrowing(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(other(self.fc1(x)))

    record = run_example(Borrowing(), torch.randn(3, 5))
    assert other not in record.sightings


def test_a_first_forward_that_fails_is_watched_again() -> None:
    model = wrap(ZOO["mlp"].model())
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 4))
    assert not placement_of(model).ready
    assert not torch.nn.modules.module._global_forward_hooks
    model(torch.randn(3, 5))
    assert list(placement_of(model).slots) == ["fc1", "fc2"]


def test_a_slot_that_must_not_look_ahead_or_may_is_drawn_so() -> None:
    host = ZOO["transformer"]
    model = wrap(host.model(), [Slot("blocks.0"), Slot("blocks.1", causal=False)], example=host.batch().x)
    sites = [place.site() for place in placement_of(model).slots.values()]
    assert [(site.layout, site.causal) for site in sites] == [(Layout.TOKENS, True), (Layout.TOKENS, False)]
