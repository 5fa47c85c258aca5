"""The hosts that the demos grow: small on purpose."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esper.datasets import characters
from esper.demos.tasks import CONTEXT


class ConvBlock(nn.Module):
    """A residual block of one convolution.

    Args:
        channels: In and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with what the convolution adds."""
        return x + F.gelu(self.conv(x))


class TransformerBlock(nn.Module):
    """A pre-norm block of causal attention and a perceptron four times as wide, born as the identity, as grafts are.

    Args:
        width: In and out; a head has 8 of it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 8
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.merge = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for last in (self.merge, self.down):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sequence with what the block adds to each position from those before it."""
        mixed = self.mix(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Embedding(nn.Module):
    """Characters and where they stand."""

    def __init__(self, symbols: int, length: int, width: int) -> None:
        super().__init__()
        self.symbols, self.positions = nn.Embedding(symbols, width), nn.Embedding(length, width)
        for table in (self.symbols, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return one vector per character."""
        out: Tensor = self.symbols(tokens) + self.positions.weight[: tokens.shape[1]]
        return out


def _perceptron() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            block1=nn.Sequential(nn.Linear(2, 8), nn.Tanh()),
            block2=nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
            head=nn.Linear(8, 2),
        )
    )


def _narrow_convnet() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GELU()),
            stage1=nn.Sequential(ConvBlock(3), ConvBlock(3)),
            down=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.GELU()),
            stage2=nn.Sequential(ConvBlock(4), ConvBlock(4)),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
        )
    )


def _small_transformer() -> nn.Module:
    symbols, width = len(characters().alphabet), 16
    return nn.Sequential(
        OrderedDict(
            embed=Embedding(symbols, CONTEXT, width),
            block1=TransformerBlock(width),
            block2=TransformerBlock(width),
            norm=nn.LayerNorm(width),
            head=nn.Linear(width, symbols),
        )
    )


HOSTS: dict[str, Callable[[], nn.Module]] = {
    "digits": _narrow_convnet,
    "spirals": _perceptron,
    "pydoc": _small_transformer,
}
"""Makes the small host of each task."""


def make_host(task: str, *, seed: int) -> nn.Module:
    """Return the small host of a task with the initial weights of a seed; global generators stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HOSTS[task]()
