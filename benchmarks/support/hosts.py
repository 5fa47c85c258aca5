"""Hosts on which benchmarks run: small enough that the cost of Python shows, and of the kinds that people train."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Host:
    """One model with the data to run it.

    Attributes:
        name: Its name in reports.
        make: Returns a fresh model, drawn from the global generator.
        batch: Returns inputs and targets for a generator.
        loss: Mean loss of outputs against targets.
    """

    name: str
    make: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut.

    Args:
        channels: Width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x and what the block adds."""
        added: Tensor = self.second(functional.relu(self.norm(self.first(x))))
        return functional.relu(x + added)


class ResidualNet(nn.Module):
    """A stem, residual blocks, and a head on the mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(16) for _ in range(3))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and perceptron.

    Args:
        width: Features of a token.
        heads: Attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        added: Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + added


class LanguageModel(nn.Module):
    """A causal transformer whose output weights are tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 48)
        self.blocks = nn.ModuleList(TransformerBlock(48, 4) for _ in range(2))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits, classes before positions."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits.transpose(1, 2)


class Recurrent(nn.Module):
    """A GRU over features, read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 24)
        self.gru = nn.GRU(24, 24, batch_first=True)
        self.leave = nn.Linear(24, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        states, _ = self.gru(torch.tanh(self.enter(x)))
        logits: Tensor = self.head(torch.tanh(self.leave(states[:, -1])))
        return logits


def _perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def _sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2, padding_mode="circular"), nn.GELU(), nn.Conv1d(16, 16, 5, padding=2), nn.GELU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 6),
    )  # fmt: skip


def _labelled(*shape: int, classes: int) -> Callable[[torch.Generator], tuple[Tensor, Tensor]]:
    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)

    return batch


def _text(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(64, (4, 17), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


HOSTS = (
    # One bare layer: nothing hides what a call costs. A forerunner cost 53 % here, a wrapper module costs 38 %.
    Host("linear", lambda: nn.Linear(32, 32), _labelled(8, 32, classes=32)),
    Host("perceptron", _perceptron, _labelled(32, 16, classes=10)),
    Host("sequence", _sequence, _labelled(8, 4, 32, classes=6)),
    Host("residual", ResidualNet, _labelled(4, 3, 12, 12, classes=10)),
    Host("transformer", LanguageModel, _text),
    Host("recurrent", Recurrent, _labelled(8, 10, 8, classes=5)),
)
"""Six hosts: a bare layer, a perceptron, convolutions over sequences and images, tied and recurrent weights."""


def fresh(host: Host, seed: int) -> nn.Module:
    """Return a model of a host, equal for equal seeds; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return host.make()


def batch_of(host: Host, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, equal for equal seeds."""
    return host.batch(torch.Generator().manual_seed(seed))
