"""Torch bodies of the built-in operations: light modules where there are tensors, plain functions where there are none."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.ir.birth import Use
from esper.ir.opset import BATCH_NORM_MOMENTUM, NORM_EPS, padding_of
from esper.ir.types import Layout

_TORCH_PADDING = {"reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class Linear(nn.Module):
    """x W^T + b on the last axis."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, use: Use, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        adopt(self, tensors, ("weight", "bias"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the mapped features."""
        return F.linear(x, self.weight, self.bias)


class Conv(nn.Module):
    """Convolution that keeps the extent."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, use: Use, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        adopt(self, tensors, ("weight", "bias"))
        self.groups = use.attrs.integer("groups")
        self.dilation = use.attrs.integer("dilation")
        self.is_1d = use.layout is Layout.CHANNELS_1D
        padding = padding_of(use)
        self.mode = _TORCH_PADDING.get(use.attrs.choice("padding_mode")) if padding else None
        self.padding = 0 if self.mode else padding
        self.margins = (padding,) * (2 * use.layout.rank)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map."""
        if self.mode is not None:
            x = F.pad(x, self.margins, self.mode)
        convolve = F.conv1d if self.is_1d else F.conv2d
        return convolve(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)


class BatchNorm(nn.Module):
    """Normalisation over examples and positions, with running statistics for evaluation."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, use: Use, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        adopt(self, tensors, ("weight", "bias"), ("running_mean", "running_var"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            BATCH_NORM_MOMENTUM,
            NORM_EPS,
        )


class GroupNorm(nn.Module):
    """Normalisation over the channels of each group and all positions."""

    weight: Tensor
    bias: Tensor

    def __init__(self, use: Use, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        adopt(self, tensors, ("weight", "bias"))
        self.groups = use.attrs.integer("groups")

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        if x.dim() == 4 and not x.requires_grad and torch.is_grad_enabled():
            # torch 2.13 on the CPU writes through a null pointer in the backward pass of a channels-last map that needs no
            # gradient itself (the first map of a host, or a detached one); without weight and bias there is no such pass.
            normal = F.group_norm(x, self.groups, None, None, NORM_EPS)
            return normal * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)
        return F.group_norm(x, self.groups, self.weight, self.bias, NORM_EPS)


class LayerNorm(nn.Module):
    """Normalisation over the channels of each position."""

    weight: Tensor
    bias: Tensor

    def __init__(self, use: Use, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        adopt(self, tensors, ("weight", "bias"))
        self.is_channels_first = use.layout.is_channels_first
        self.shape = use.inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised value."""
        if self.is_channels_first:
            last = F.layer_norm(x.movedim(1, -1), self.shape, self.weight, self.bias, NORM_EPS)
            return last.movedim(-1, 1)
        return F.layer_norm(x, self.shape, self.weight, self.bias, NORM_EPS)


class RmsNorm(nn.Module):
    """Division by the root mean square over the channels of each position."""

    weight: Tensor

    def __init__(self, use: Use, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        adopt(self, tensors, ("weight",))
        self.is_channels_first = use.layout.is_channels_first
        self.shape = use.inputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled value."""
        if self.is_channels_first:
            return F.rms_norm(x.movedim(1, -1), self.shape, self.weight, NORM_EPS).movedim(-1, 1)
        return F.rms_norm(x, self.shape, self.weight, NORM_EPS)


@dataclass(frozen=True)
class Scale:
    """A constant times x."""

    value: float

    def __call__(self, x: Tensor) -> Tensor:
        """Return the scaled value."""
        return x * self.value


@dataclass(frozen=True)
class Attention:
    """softmax(q k^T / sqrt(d)) v for each head, over all positions."""

    heads: int
    is_causal: bool
    is_channels_first: bool

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values."""
        if self.is_channels_first:
            flat = self._attended(*(part.flatten(2).transpose(1, 2) for part in (query, key, value)))
            return flat.transpose(1, 2).reshape(value.shape)
        return self._attended(query, key, value)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = self._by_head(query), self._by_head(key), self._by_head(value)
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal).transpose(1, 2).flatten(2)

    def _by_head(self, part: Tensor) -> Tensor:
        return part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2)


def position_mean(x: Tensor) -> Tensor:
    """Return the mean over all positions of a channels-first map, as one position for all."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0)."""
    return F.relu(x)


def gelu(x: Tensor) -> Tensor:
    """Return x * Phi(x), with the error function itself."""
    return F.gelu(x)


def silu(x: Tensor) -> Tensor:
    """Return x * sigmoid(x)."""
    return F.silu(x)


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    return torch.tanh(x)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y."""
    return x + y


def mul(x: Tensor, y: Tensor) -> Tensor:
    """Return x * y."""
    return x * y


def adopt(
    module: nn.Module, tensors: Mapping[str, Tensor], parameters: tuple[str, ...], buffers: tuple[str, ...] = ()
) -> None:
    """Make tensors the parameters and buffers of a module, without a copy and without any initialisation."""
    for name in parameters:
        tensor = tensors.get(name)
        module.register_parameter(name, None if tensor is None else nn.Parameter(tensor))
    for name in buffers:
        module.register_buffer(name, tensors[name])
