"""The expressivity bottleneck: the part of the wished-for change of a layer that it cannot make itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from esper.ir import Layout
from esper.kasmina.placement import Place, placement_of

ROWS = 2048
"""Positions that enter the regression of one forward pass, at most."""
RIDGE = 1e-3
"""Ridge, as a share of the mean variance of a feature."""


@dataclass
class _Samples:
    features: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


class BottleneckProbe:
    """Watches the user's next training step, and scores each slot by its expressivity bottleneck.

    The gradient of the loss with respect to a slot's output is regressed on the slot's input (on its output where the
    positions differ). What remains is a change that the layer's own linear weights cannot make.

    Args:
        model: Wrapped model.
        slots: Names of slots to watch.

    Attributes:
        flops: Floating-point operations that ``read`` took.

    References:
        Verbockhaven, Rudkiewicz, Chevallier, Charpiat 2024, "Growing Tiny Networks: Spotting Expressivity Bottlenecks and
        Fixing Them Optimally".
    """

    def __init__(self, model: nn.Module, slots: Sequence[str]) -> None:
        self.flops = 0
        self._model = model
        placement = placement_of(model)
        self._places = [placement.place(name) for name in slots]
        self._samples: dict[str, _Samples] = {place.name: _Samples() for place in self._places}
        self._hooks: list[Any] = []

    def arm(self) -> None:
        """Watch from now on, with hooks that ``disarm`` takes away."""
        self._hooks = [place.module.register_forward_hook(self._watch(place)) for place in self._places]

    def disarm(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def read(self) -> dict[str, float]:
        """Return the score of each slot that was seen: residual energy as a share of all slots' gradient energy, in [0, 1]."""
        residual, total = {}, 0.0
        for name, samples in self._samples.items():
            if samples.gradients:
                left, energy = self._regress(torch.cat(samples.features), torch.cat(samples.gradients))
                residual[name] = left
                total += energy
        return {name: value / total if total > 0 else 0.0 for name, value in residual.items()}

    def state_dict(self) -> dict[str, dict[str, list[Tensor]]]:
        """Return what was seen so far, by slot; nothing before the first backward pass."""
        return {
            name: {"features": list(samples.features), "gradients": list(samples.gradients)}
            for name, samples in self._samples.items()
            if samples.gradients
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Sequence[Tensor]]]) -> None:
        """Go on from ``state_dict``."""
        for name, samples in self._samples.items():
            seen, device = state.get(name, {}), next(self._model.parameters()).device
            samples.features[:] = [tensor.to(device) for tensor in seen.get("features", ())]
            samples.gradients[:] = [tensor.to(device) for tensor in seen.get("gradients", ())]

    def _watch(self, place: Place) -> Callable[[nn.Module, Any, Any], None]:
        samples = self._samples[place.name]

        def seen(_module: nn.Module, inputs: Any, output: Any) -> None:
            if not (isinstance(output, Tensor) and output.requires_grad and torch.is_grad_enabled()):
                return
            features = _rows(_source(inputs, output, place.layout), place.layout)

            def with_gradient(gradient: Tensor) -> None:
                samples.features.append(features)
                samples.gradients.append(_rows(gradient, place.layout))

            output.register_hook(with_gradient)  # type: ignore[no-untyped-call]

        return seen

    @torch.no_grad()
    def _regress(self, features: Tensor, gradients: Tensor) -> tuple[float, float]:
        """Return residual and total energy of the gradients, in float64."""
        x = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64, device=features.device)], 1)
        y = gradients.double()
        energy = float(y.square().sum())
        if not (energy > 0 and bool(torch.isfinite(x).all()) and bool(torch.isfinite(y).all())):
            return 0.0, 0.0
        gram = x.T @ x
        gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
        weights = torch.linalg.solve(gram, x.T @ y)
        n, d, c = len(x), x.shape[1], y.shape[1]
        self.flops += 2 * n * d * d + 4 * n * d * c + 2 * d**3 // 3 + 2 * d * d * c
        return min(energy, float((y - x @ weights).square().sum())), energy


def _source(inputs: Any, output: Tensor, layout: Layout) -> Tensor:
    """Return the module's own input where it has the output's positions, its output otherwise."""
    first = inputs[0] if isinstance(inputs, tuple) and inputs and isinstance(inputs[0], Tensor) else output
    same = first.is_floating_point() and first.ndim == output.ndim
    return first if same and _positions(first, layout) == _positions(output, layout) else output


def _positions(tensor: Tensor, layout: Layout) -> tuple[int, ...]:
    """Return the sizes of all axes but that of the channels."""
    shape = tuple(tensor.shape)
    return (shape[0], *shape[2:]) if layout.is_channels_first else shape[:-1]


def _rows(tensor: Tensor, layout: Layout) -> Tensor:
    """Return positions as rows, evenly thinned to ``ROWS`` at most, as a copy of its own."""
    last = tensor.detach().movedim(1, -1) if layout.is_channels_first else tensor.detach()
    rows = last.reshape(-1, last.shape[-1])
    return rows[:: max(1, -(-len(rows) // ROWS))].clone()
