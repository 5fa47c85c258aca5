"""The hosts that are grown, and their static controls: one family for each task, by width.

The last layer of every residual branch begins at zero, in small, wide and grown networks alike.
"""

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 16


class ConvBlock(nn.Module):
    """A residual block of two convolutions with batch norm, over signals or images.

    The activation follows the addition, so that no norm takes away what a graft adds.
    """

    def __init__(self, channels: int, rank: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = channels if hidden is None else hidden
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if rank == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.conv1, self.norm1 = conv(channels, hidden, 3, padding=1, bias=False), norm(hidden)
        self.conv2, self.norm2 = conv(hidden, channels, 3, padding=1, bias=False), norm(channels)
        silence(self.norm2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with what the branch adds."""
        return F.gelu(x + self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x))))))


class Perceptron(nn.Module):
    """A pre-norm residual block of two linear layers."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.up, self.down = nn.Linear(features, hidden), nn.Linear(hidden, features)
        silence(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with what the branch adds."""
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class TransformerBlock(nn.Module):
    """A pre-norm block of causal attention and a perceptron four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.merge = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        silence(self.merge)
        silence(self.down)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sequence with what the block adds, position by position from what came before."""
        n, length, width = x.shape
        query, key, value = self.mix(self.norm1(x)).view(n, length, 3, self.heads, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).reshape(n, length, width))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Embedding(nn.Module):
    """Characters and their positions."""

    def __init__(self, symbols: int, length: int, width: int) -> None:
        super().__init__()
        self.symbols, self.positions = nn.Embedding(symbols, width), nn.Embedding(length, width)
        nn.init.normal_(self.symbols.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one vector per character."""
        out: Tensor = self.symbols(tokens) + self.positions.weight[: tokens.shape[1]]
        return out


def residual_cnn(width: int, *, rank: int, classes: int, hidden: int | None = None) -> nn.Module:
    """Return a residual CNN of two stages, the second of half the extent, over signals (rank 1) or images (rank 2).

    Args:
        width: Channels of the path through the network.
        rank: Of the positions.
        classes: Of the answer.
        hidden: Channels within a block; as many as those of the path where it is left out.
    """
    conv, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if rank == 1 else (nn.Conv2d, nn.AdaptiveAvgPool2d)
    return nn.Sequential(
        OrderedDict(
            stem=conv(1, width, 5 if rank == 1 else 3, padding=2 if rank == 1 else 1),
            stage1=nn.Sequential(ConvBlock(width, rank, hidden), ConvBlock(width, rank, hidden)),
            down=conv(width, width, 3, stride=2, padding=1),
            stage2=nn.Sequential(ConvBlock(width, rank, hidden), ConvBlock(width, rank, hidden)),
            head=nn.Sequential(pool(1), nn.Flatten(), nn.Linear(width, classes)),
        )
    )


def uneven_cnn(width: int, *, classes: int) -> nn.Module:
    """Return a residual CNN over signals of three stages of four blocks.

    Channels double from stage to stage while the extent halves, so that gated convolutions of the same inner width take as many
    FLOPs at any of them.
    """
    channels = (width, 2 * width, 4 * width)
    stages = OrderedDict(
        (f"stage{number}", nn.Sequential(*(ConvBlock(count, 1) for _ in range(4))))
        for number, count in enumerate(channels, 1)
    )
    downs = [nn.Conv1d(a, b, 3, stride=2, padding=1) for a, b in pairwise(channels)]
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv1d(1, width, 5, padding=2),
            stage1=stages["stage1"],
            down1=downs[0],
            stage2=stages["stage2"],
            down2=downs[1],
            stage3=stages["stage3"],
            head=nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels[-1], classes)),
        )
    )


def perceptron(width: int, *, inputs: int, trunk: int) -> nn.Module:
    """Return a residual perceptron of two blocks for a regression on one target.

    Args:
        width: Hidden units of each block.
        inputs: Columns.
        trunk: Features of the path through the network, which no graft can widen; the same in every width.
    """
    return nn.Sequential(
        OrderedDict(
            stem=nn.Linear(inputs, trunk),
            block1=Perceptron(trunk, width),
            block2=Perceptron(trunk, width),
            head=nn.Sequential(nn.LayerNorm(trunk), nn.Linear(trunk, 1), nn.Flatten(0)),
        )
    )


def plain_perceptron(width: int, *, inputs: int, classes: int) -> nn.Module:
    """Return a perceptron of two hidden layers, without a residual stream: only a graft that reads what enters widens it."""
    return nn.Sequential(
        OrderedDict(
            hidden1=nn.Sequential(nn.Linear(inputs, width), nn.GELU()),
            hidden2=nn.Sequential(nn.Linear(width, width), nn.GELU()),
            head=nn.Linear(width, classes),
        )
    )


def transformer(width: int, *, symbols: int, length: int, appended: int, blocks: int = 2) -> nn.Module:
    """Return a causal transformer of some blocks; behind them lie places where whole blocks can be appended."""
    body = OrderedDict((f"block{index}", TransformerBlock(width)) for index in range(1, blocks + 1))
    tail = OrderedDict((f"place{index}", nn.Identity()) for index in range(1, appended + 1))
    return nn.Sequential(
        OrderedDict(
            embed=Embedding(symbols, length, width),
            **body,
            **tail,
            norm=nn.LayerNorm(width),
            head=nn.Linear(width, symbols),
        )
    )


def silence(layer: nn.Module) -> None:
    """Begin a layer at zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
