"""Signals by name: the one list."""

from collections.abc import Mapping
from difflib import get_close_matches

from torch import nn
from torch.optim import Optimizer

from esper.errors import ConfigError
from esper.kasmina.placement import placement_of
from esper.kasmina.signals import DEFAULT
from esper.kasmina.signals.activity import PARTS, ActivitySignal
from esper.kasmina.signals.activity import Measure as ActivityMeasure
from esper.kasmina.signals.bottleneck import bottleneck
from esper.kasmina.signals.effective_rank import used_width
from esper.kasmina.signals.gradient_norm import gradient_to_weight
from esper.kasmina.signals.gradient_snr import gradient_snr, no_moments
from esper.kasmina.signals.parameters import Measure as ParameterMeasure
from esper.kasmina.signals.parameters import ParameterSignal
from esper.kasmina.signals.signal import Signal
from esper.kasmina.signals.tiny import tiny_residual

_BY_ACTIVITY: Mapping[str, tuple[ActivityMeasure, tuple[str, ...]]] = {
    DEFAULT: (bottleneck, ("inputs", "gradients")),
    "tiny_residual": (tiny_residual, PARTS),
    "effective_rank": (used_width, ("outputs",)),
}
_BY_PARAMETERS: Mapping[str, ParameterMeasure] = {
    "gradient_norm": gradient_to_weight,
    "gradient_snr": gradient_snr,
}
SIGNALS = (*_BY_ACTIVITY, *_BY_PARAMETERS)
"""Names of the signals that there are."""


def signal_named(name: str, model: nn.Module, optimizer: Optimizer) -> Signal:
    """Return a signal for every slot of a wrapped model."""
    slots = tuple(placement_of(model).slots)
    if name in _BY_ACTIVITY:
        measure, reads = _BY_ACTIVITY[name]
        return ActivitySignal(model, slots, measure, reads=reads)
    return ParameterSignal(model, optimizer, slots, _BY_PARAMETERS[name])


def check_signal(name: object, optimizer: Optimizer, *, probed: bool) -> None:
    """Refuse a signal that this training does not give.

    Args:
        name: What was asked for.
        optimizer: Of the training.
        probed: Whether it is to be measured on a probe of the user's own.

    Raises:
        ConfigError: If there is none of that name, or it is read from what neither the optimizer nor the probe leaves.
    """
    if name not in SIGNALS:
        near = get_close_matches(str(name), SIGNALS, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(SIGNALS)}"
        raise ConfigError(f"signal={name!r}", why="no signal has that name", todo=hint, code="ESP-2129")
    if name in _BY_PARAMETERS and probed:
        raise ConfigError(
            f"signal={name!r} with probe=",
            why="it is read from the gradients of the training, and a probe leaves none",
            todo="leave probe out; the signal costs next to nothing",
            code="ESP-2136",
        )
    if name == "gradient_snr" and not all("betas" in group for group in optimizer.param_groups):
        raise no_moments(optimizer)
