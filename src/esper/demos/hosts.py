"""The hosts that the demos grow: small on purpose."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


HOSTS: dict[str, Callable[[], nn.Module]] = {"digits": _narrow_convnet, "spirals": _perceptron}
"""Makes the small host of each task."""


def make_host(task: str, *, seed: int) -> nn.Module:
    """Return the small host of a task with the initial weights of a seed; global generators stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HOSTS[task]()
