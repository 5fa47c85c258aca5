"""Tiny hosts of every kind that Esper must leave unchanged until they grow: for whoever tests how something treats models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from esper.kasmina.discovery import Wanted
from esper.kasmina.quiet import preserved_rng

CLASSES = 4
"""Classes that every host tells apart; its output is one row of logits per example or token."""
VOCABULARY = 11
Padding: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class Batch:
    """One batch: what the model takes, and the class of each row of its output."""

    x: Tensor
    target: Tensor


@dataclass(frozen=True)
class ZooHost:
    """A small model with data to train it on.

    Attributes:
        name: What is special about it.
        make: Makes the model, in float32.
        shape: Shape of a batch; None where the model takes ``length`` token ids.
        length: Rows of logits for each example; 0 where it has one.
        slots: Where it may grow, as ``esper.wrap`` takes it.
        examples: Size of a batch.
        channels_last: Whether its images lie channels last in memory.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...] | None
    length: int = 0
    slots: Wanted = "auto"
    examples: int = 6
    channels_last: bool = False

    def model(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return a fresh model, equal for equal seeds; the global generators are left alone."""
        with preserved_rng():
            torch.manual_seed(seed)
            model = self.make().to(dtype)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]

    def batch(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
        """Return a batch, equal for equal seeds."""
        generator = torch.Generator().manual_seed(seed)
        rows = (self.examples, self.length) if self.length else (self.examples,)
        target = torch.randint(CLASSES, rows, generator=generator)
        return Batch(self._inputs(generator, dtype), target)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross entropy of the model on a batch."""
        logits = model(batch.x)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.target.reshape(-1))

    def _inputs(self, generator: Generator, dtype: torch.dtype) -> Tensor:
        if self.shape is None:
            return torch.randint(VOCABULARY, (self.examples, self.length), generator=generator)
        x = torch.randn(self.examples, *self.shape, generator=generator, dtype=torch.float64).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


class Mlp(nn.Module):
    """Three linear layers, with or without bias."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 8, bias=bias)
        self.fc2 = nn.Linear(8, 8, bias=bias)
        self.head = nn.Linear(8, CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(torch.tanh(self.fc2(torch.relu(self.fc1(x)))))
        return result


class ResidualBlock(nn.Module):
    """A linear layer around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + relu(fc(norm(x)))."""
        return x + torch.relu(self.fc(self.norm(x)))


class ResidualMlp(nn.Module):
    """Blocks in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.blocks = nn.ModuleList(ResidualBlock(8) for _ in range(4))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(x)
        return result


class Conv1dNet(nn.Module):
    """Convolutions over a sequence, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.conv2, self.bn2 = nn.Conv1d(6, 8, 3, padding=1, stride=2), nn.BatchNorm1d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.head(torch.relu(self.bn2(self.conv2(x))).mean(2))
        return result


class BasicBlock(nn.Module):
    """Two convolutions with batch norm, around which the input passes."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != width:
            self.shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both paths."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        result: Tensor = self.relu(out)
        return result


class ResNet(nn.Module):
    """A residual network of two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(BasicBlock(6, 6, 1), BasicBlock(6, 6, 1))
        self.layer2 = nn.Sequential(BasicBlock(6, 8, 2), BasicBlock(8, 8, 1))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(self.layer2(self.layer1(self.stem(x))).mean((2, 3)))
        return result


class ConvNet(nn.Module):
    """Two convolutions of any padding and grouping."""

    def __init__(self, modes: tuple[Padding, Padding] = ("zeros", "zeros"), groups: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, padding_mode=modes[0], bias=bias)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, padding_mode=modes[1], bias=bias, groups=groups)
        self.mix = nn.Conv2d(6, 8, 1, bias=bias)
        self.head = nn.Linear(8, CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = F.max_pool2d(F.gelu(self.conv1(x)), 2)
        result: Tensor = self.head(F.gelu(self.mix(self.conv2(x))).amax((2, 3)))
        return result


class Attention(nn.Module):
    """Causal self-attention written out by hand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended values."""
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        result: Tensor = self.out(
            F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        )
        return result


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return x with what attention and perceptron add."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        result: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return result


class Transformer(nn.Module):
    """Tokens to logits; with ``tied`` the output layer is the embedding, as in language models."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.position = nn.Parameter(0.02 * torch.randn(5, 16))
        self.blocks = nn.ModuleList(Block(16, dropout=0.1) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, VOCABULARY if tied else CLASSES, bias=not tied)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits of each token."""
        x = self.embedding(ids) + self.position
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.norm(x))
        return result


class TorchTransformer(nn.Module):
    """torch's own encoder, which leaves its modules' code on a fast path in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        """Return logits of each token."""
        result: Tensor = self.head(self.encoder(self.embedding(ids), src_key_padding_mask=padding))
        return result


class Shared(nn.Module):
    """One module under two names, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.body = ResidualBlock(8)
        self.again = self.body
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(self.again(self.body(self.body(self.stem(x)))))
        return result


class Recurrent(nn.Module):
    """A recurrent layer, whose output is no single tensor, between layers whose output is."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits of each token."""
        x, _ = self.rnn(self.embedding(ids))
        result: Tensor = self.head(torch.tanh(self.mix(x)))
        return result


class WeightNormed(nn.Module):
    """Linear layers whose weights torch computes anew at every use, in classes that torch swapped in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = weight_norm(nn.Linear(5, 8))
        self.fc2 = weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        result: Tensor = self.head(torch.relu(self.fc2(torch.relu(self.fc1(x)))))
        return result


def _nested_sequential() -> nn.Module:
    inner = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())
    outer = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    return nn.Sequential(inner, outer, nn.Linear(8, CLASSES))


def _dropout_mlp() -> nn.Module:
    layers = (nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.3))
    return nn.Sequential(*layers, nn.Linear(8, CLASSES))


_IMAGE = (3, 6, 6)
ZOO: dict[str, ZooHost] = {
    host.name: host
    for host in (
        ZooHost("mlp", Mlp, (5,)),
        ZooHost("residual_mlp", ResidualMlp, (5,)),
        ZooHost("conv1d", Conv1dNet, (3, 9)),
        ZooHost("resnet", ResNet, _IMAGE),
        ZooHost("padded_conv", lambda: ConvNet(("reflect", "circular")), _IMAGE),
        ZooHost("depthwise", lambda: ConvNet(groups=6), _IMAGE),
        ZooHost("bias_free_conv", lambda: ConvNet(bias=False), _IMAGE),
        ZooHost("bias_free_mlp", lambda: Mlp(bias=False), (5,)),
        ZooHost("transformer", Transformer, None, length=5),
        ZooHost("torch_transformer", TorchTransformer, None, length=5),
        ZooHost("tied_language_model", lambda: Transformer(tied=True), None, length=5),
        ZooHost("shared", Shared, (5,), slots=("stem", "body")),
        ZooHost("nested_sequential", _nested_sequential, (5,)),
        ZooHost("sequential_slots", _nested_sequential, (5,), slots=nn.Sequential),
        ZooHost("dropout", _dropout_mlp, (5,)),
        ZooHost("recurrent", Recurrent, None, length=5),
        ZooHost("weight_normed", WeightNormed, (5,)),
        ZooHost("channels_last", ResNet, _IMAGE, channels_last=True),
    )
}
"""The hosts by name."""
