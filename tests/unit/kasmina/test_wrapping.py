"""Wrapping in place, and every reason not to."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.kasmina import MorphableModel, placement_of, topology, unwrap, wrap
from esper.kasmina.placement import KEY
from esper.testing.zoo import ZOO, Mlp, ResNet
from tests.laws.support import graft, wrapped


def test_wrap_returns_the_same_model() -> None:
    model = ZOO["mlp"].model()
    assert wrap(model) is model
    assert isinstance(model, Mlp)


def test_equal_hosts_share_one_class() -> None:
    assert type(wrapped(ZOO["mlp"])) is type(wrapped(ZOO["mlp"], seed=1))
    assert type(wrapped(ZOO["mlp"])).__qualname__ == "Mlp"
    assert type(wrapped(ZOO["mlp"])).__module__ == Mlp.__module__


class Named(Mlp):
    def load_kernel(self) -> None:
        """Has a name of its own that a wrapped model needs."""


@pytest.mark.parametrize(
    ("make", "what", "hint", "code"),
    [
        (lambda: wrapped(ZOO["mlp"]), "wrapped already", "esper.unwrap(model) first", "ESP-2202"),
        (lambda: wrap(ZOO["mlp"].model()), "wrapped already", "esper.unwrap(model) first", "ESP-2202"),
        (Named, "the model has load_kernel of its own", "needs these names", "ESP-2204"),
        (lambda: torch.jit.trace(Mlp(), torch.randn(2, 5)), "scripted or compiled", "it was made from", "ESP-2205"),
        (lambda: torch.compile(Mlp()), "scripted or compiled", "compile that afterwards", "ESP-2205"),
        (lambda: Mlp, "type is not a torch module", "", "ESP-2200"),
        (lambda: "model", "str is not a torch module", "", "ESP-2200"),
    ],
    ids=["twice", "twice unready", "names taken", "scripted", "compiled", "a class", "no module"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_wrapped_is_told_why(make: Any, what: str, hint: str, code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        wrap(make())
    assert what in str(refused.value)
    assert hint in str(refused.value)
    assert refused.value.code == code


def test_a_class_that_forbids_subclasses_stays_as_it_was() -> None:
    class Final(Mlp):
        def __init_subclass__(cls) -> None:
            raise TypeError("Final is final")

    model = Final()
    with pytest.raises(ConfigError, match="cannot be swapped: Final is final"):
        wrap(model)
    assert type(model) is Final
    assert KEY not in vars(model)


def test_a_class_with_a_metaclass_of_its_own_can_be_wrapped() -> None:
    class Meta(type):
        pass

    class Odd(Mlp, metaclass=Meta):
        pass

    model = wrap(Odd(), example=torch.randn(2, 5))
    assert isinstance(model, Odd)
    assert isinstance(type(model), Meta)
    unwrap(model)
    assert type(model) is Odd


def test_models_with_attribute_magic_of_their_own_can_be_wrapped() -> None:
    class Magic(Mlp):
        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)

    model = Magic()
    graft(wrap(model, example=torch.randn(2, 5)), "fc1", "mlp_adapter")
    model.note = 3
    assert model.note == 3
    unwrap(model)
    assert type(model) is Magic


def test_only_wrapped_models_are_unwrapped() -> None:
    with pytest.raises(ConfigError, match=r"no slots.*call esper.wrap"):
        unwrap(ZOO["mlp"].model())


def test_a_model_with_a_run_attached_is_not_unwrapped() -> None:
    class Run:
        async def graft_kernel(self, layer_name: str, seed_idx: int, kernel_id: str) -> None:
            """Do nothing."""

    model = wrapped(ZOO["mlp"])
    placement_of(model).grower = Run()
    with pytest.raises(ConfigError, match=r"growth.close\(\) first"):
        unwrap(model)
    twin = copy.deepcopy(model)
    assert placement_of(twin).grower is None
    unwrap(twin)


def test_a_copy_has_no_library_of_the_original() -> None:
    class Shelf:
        def __deepcopy__(self, memo: dict[int, Any]) -> None:
            raise AssertionError("a library is not copied")

    model = wrap(ZOO["mlp"].model(), library=Shelf())  # type: ignore[arg-type]
    assert placement_of(copy.deepcopy(model)).library is None


def test_a_part_of_a_model_can_be_wrapped_alone() -> None:
    host = ResNet()
    x = torch.randn(2, 3, 6, 6)
    plain = copy.deepcopy(host)(x)
    wrap(host.layer1, ["0", "1"])
    assert torch.equal(host(x), plain)
    assert list(placement_of(host.layer1).slots) == ["0", "1"]
    graft(host.layer1, "0", "gated_conv")
    assert any("layer1.0.esper_grafts" in name for name in host.state_dict())
    unwrap(host.layer1)
    assert type(host.layer1) is nn.Sequential


def test_replicas_of_a_model_that_has_not_run_leave_its_slots_alone() -> None:
    model = wrap(ZOO["mlp"].model())
    replica = model._replicate_for_data_parallel()
    assert isinstance(replica, MorphableModel)
    replica._parameters = model._parameters
    replica(torch.randn(2, 5))
    assert not placement_of(model).ready


def test_the_description_lists_slots_seeds_and_refusals() -> None:
    model = wrap(ZOO["resnet"].model())
    assert isinstance(model, MorphableModel)
    assert model.esper.summary() == "slots are known after the first forward pass (or give esper.wrap an example=)"
    model(ZOO["resnet"].batch().x)  # type: ignore[operator]
    assert model.esper.summary().splitlines() == [
        "layer1.0: channels_2d, 6 channels of 6x6, stage 0: dormant",
        "layer1.1: channels_2d, 6 channels of 6x6, stage 0: dormant",
        "layer2.0: channels_2d, 8 channels of 3x3, stage 1: dormant",
        "layer2.1: channels_2d, 8 channels of 3x3, stage 1: dormant",
        "- head: left out, it makes the model's own output",
    ]
    assert model.esper.graph()[2] == {
        "slot": "layer2.0",
        "stage": 1,
        "order": 2,
        "layout": "channels_2d",
        "channels": 8,
        "extent": [3, 3],
        "seeds": [],
    }
    assert model.esper.to_mermaid().splitlines()[:2] == ["flowchart LR", '  s0["layer1.0 channels_2d 6"]']
    assert topology(model) == ()


def test_a_host_that_is_one_layer_has_no_slots_but_wraps() -> None:
    model = wrap(nn.Linear(5, 2), example=torch.randn(3, 5))
    assert placement_of(model).slots == {}

    class Alone(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    assert isinstance(wrap(Alone(), example=torch.ones(2)), MorphableModel)
