"""Layouts are told by the layers inside, and never guessed."""

import pytest
import torch
from torch import Tensor, nn

from esper.errors import ConfigError
from esper.ir import Layout
from esper.kasmina import Slot, placement_of, plan, wrap
from esper.kasmina.layouts import Tell, layout_of, tell_of

FEATURES, TOKENS, MAPS_1D, MAPS_2D = Layout.FEATURES, Layout.TOKENS, Layout.CHANNELS_1D, Layout.CHANNELS_2D
UNKNOWN = "its layers do not tell where the channels are; name it as esper.Slot(name, layout=...)"


@pytest.mark.parametrize(
    ("layer", "shape", "found"),
    [
        (nn.Linear(5, 8), (4, 5), Tell(False, 2, 8)),
        (nn.Linear(5, 8), (4, 3, 5), Tell(False, 3, 8)),
        (nn.LayerNorm(5), (4, 3, 5), Tell(False, 3, 5)),
        (nn.Conv1d(5, 8, 1), (4, 5, 7), Tell(True, 3, 8)),
        (nn.Conv2d(5, 8, 1), (4, 5, 7, 7), Tell(True, 4, 8)),
        (nn.ConvTranspose2d(5, 8, 1), (4, 5, 7, 7), Tell(True, 4, 8)),
        (nn.BatchNorm1d(5), (4, 5), Tell(True, 2, 5)),
        (nn.BatchNorm1d(5), (4, 5, 7), Tell(True, 3, 5)),
        (nn.GroupNorm(1, 5), (4, 5, 7, 7), Tell(True, 4, 5)),
        (nn.MultiheadAttention(8, 2), (3, 4, 8), Tell(False, 3, 8)),
        (nn.TransformerEncoderLayer(8, 2, 8), (3, 4, 8), Tell(False, 3, 8)),
        (nn.ReLU(), (4, 5, 7), None),
        (nn.Conv1d(5, 8, 1), (5, 7), None),
        (nn.Conv2d(5, 8, 1), (5, 7, 7), None),
    ],
    ids=repr,
)
def test_what_a_layer_tells(layer: nn.Module, shape: tuple[int, ...], found: Tell | None) -> None:
    x = torch.zeros(shape)
    assert tell_of(layer, layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(x)) == found


@pytest.mark.parametrize(
    ("shape", "tells", "layout"),
    [
        ((4, 8), [Tell(False, 2, 8)], FEATURES),
        ((4, 72), [Tell(True, 4, 8)], FEATURES),
        ((4, 8), [], None),
        ((4, 9, 8), [Tell(False, 3, 8)], TOKENS),
        ((4, 8, 9), [Tell(True, 3, 8)], MAPS_1D),
        ((4, 8, 6, 6), [Tell(True, 4, 8)], MAPS_2D),
        ((4, 6, 6, 8), [Tell(False, 4, 8)], FEATURES),
        # A gate halves the channels after the last layer that tells.
        ((4, 8, 9), [Tell(True, 3, 16)], MAPS_1D),
        ((4, 9, 8), [Tell(False, 3, 16)], TOKENS),
        # Patches: the convolution had four axes, the output has three.
        ((4, 9, 8), [Tell(True, 4, 8)], None),
        # Transposed at the end.
        ((4, 9, 8), [Tell(True, 3, 8)], None),
        ((4, 8, 9), [Tell(False, 3, 8)], None),
        # To the back and to the front again, as ConvNeXt does.
        ((4, 8, 6, 6), [Tell(True, 4, 8), Tell(False, 4, 8), Tell(False, 4, 32), Tell(False, 4, 8)], MAPS_2D),
        # The same where the width equals the extent: both orders fit.
        ((4, 6, 6, 6), [Tell(True, 4, 6), Tell(False, 4, 6)], None),
        # Squeeze and excite: the linear layers see no positions.
        ((4, 8, 8, 8), [Tell(True, 4, 8), Tell(False, 2, 4), Tell(False, 2, 8)], MAPS_2D),
        ((4, 8, 3, 3, 3), [Tell(True, 5, 8)], None),
        ((), [], None),
    ],
)
def test_the_layout_of_an_output(shape: tuple[int, ...], tells: list[Tell], layout: Layout | None) -> None:
    assert layout_of(shape, tuple(tells)) is layout


class Permuted(nn.Module):
    """A ConvNeXt block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.down(torch.relu(self.up(y))).permute(0, 3, 1, 2)


class Patches(nn.Module):
    """The first layer of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).transpose(1, 2)


class SequenceFirst(nn.Module):
    """torch's attention as it comes: the first axis is the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        return self.head(torch.relu(self.mlp(x)))


def test_blocks_that_move_their_channels_about_are_read_right() -> None:
    model = nn.Sequential(Permuted(8), Permuted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    places = plan(model, torch.randn(2, 8, 5, 5)).places
    assert [(place.name, place.layout, place.channels, place.extent) for place in places] == [
        ("0", MAPS_2D, 8, (5, 5)),
        ("1", MAPS_2D, 8, (5, 5)),
    ]


def test_patches_need_to_be_told() -> None:
    model = nn.Sequential(Patches(), nn.Linear(8, 8), nn.Linear(8, 2))
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ConfigError, match="do not tell where the channels are"):
        wrap(model, "0", example=x)
    wrap(model, Slot("0", layout=TOKENS), example=x)
    place = placement_of(model).place("0")
    assert (place.layout, place.channels, place.extent) == (TOKENS, 8, (4,))


@pytest.mark.parametrize(
    "model",
    [
        SequenceFirst(),
        nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 8), nn.Linear(8, 2)),
    ],
    ids=["attention", "encoder layer"],
)
def test_where_the_batch_is_not_first_no_graft_mixes_positions(model: nn.Module) -> None:
    found = plan(model, torch.randn(5, 3, 8))
    assert found.places
    assert {place.layout for place in found.places} == {FEATURES}
    assert "self_attention" not in {graft.blueprint for graft in found.grafts}


def test_a_layout_given_by_hand_must_fit_the_shape() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match=r"shape \(3, 8\), which is not channels_2d"):
        wrap(model, Slot("0", layout=MAPS_2D), example=torch.randn(3, 8))
    with pytest.raises(ConfigError, match="layouts are features, tokens, channels_1d, channels_2d"):
        Slot("0", layout="channels_3d")  # type: ignore[arg-type]
    assert Slot("0", layout="tokens").layout is TOKENS  # type: ignore[arg-type]
