"""Signals that read what passes through the slots: activity going forward, gradients coming back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from esper.ir import Layout
from esper.kasmina.layouts import around
from esper.kasmina.placement import Place, placement_of
from esper.kasmina.signals.signal import Scores

ROWS = 2048
"""Positions of one forward pass that are kept, at most."""


@dataclass
class Seen:
    """What one step showed of a slot, one tensor of shape ``rows channels`` for each call; a row is a position.

    Attributes:
        inputs: What entered it; what left it, where that has other positions.
        outputs: What left it.
        gradients: Of the loss, with respect to what left it.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)


PARTS = tuple(part.name for part in fields(Seen))
"""What can be seen of a slot."""
Measure: TypeAlias = Callable[[Mapping[str, Seen]], Scores]
"""Scores the slots that were seen, each with at least one call."""


class ActivitySignal:
    """Watches the user's next training step through hooks at the slots.

    Args:
        model: Wrapped model.
        slots: Names of slots to watch.
        measure: Makes scores of what was seen.
        reads: Which parts of ``Seen`` it reads; no other is kept.

    Attributes:
        flops: Floating-point operations that ``read`` took.
    """

    in_forward = True

    def __init__(
        self, model: nn.Module, slots: Sequence[str], measure: Measure, *, reads: Sequence[str] = PARTS
    ) -> None:
        self.flops = 0
        self._model, self._measure, self._reads = model, measure, frozenset(reads)
        placement = placement_of(model)
        self._places = [placement.place(name) for name in slots]
        self._seen: dict[str, Seen] = {place.name: Seen() for place in self._places}
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
        """Return the score of each slot that was seen."""
        with torch.no_grad():
            scores = self._measure({name: seen for name, seen in self._seen.items() if _any(seen)})
        self.flops += scores.flops
        return scores.read()

    def state_dict(self) -> dict[str, dict[str, list[Tensor]]]:
        """Return what was seen so far, by slot; nothing before the first backward pass."""
        return {
            name: {part: list(getattr(seen, part)) for part in PARTS} for name, seen in self._seen.items() if _any(seen)
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Sequence[Tensor]]]) -> None:
        """Go on from ``state_dict``."""
        device = next(self._model.parameters()).device
        for name, seen in self._seen.items():
            for part in PARTS:
                getattr(seen, part)[:] = [tensor.to(device) for tensor in state.get(name, {}).get(part, ())]

    def _watch(self, place: Place) -> Callable[[nn.Module, Any, Any], None]:
        seen = self._seen[place.name]

        def called(_module: nn.Module, inputs: Any, output: Any) -> None:
            if not (isinstance(output, Tensor) and output.requires_grad and torch.is_grad_enabled()):
                return
            kept: list[tuple[list[Tensor], Tensor]] = []
            if "inputs" in self._reads:
                kept.append((seen.inputs, _rows(_source(inputs, output, place.layout), place.layout)))
            if "outputs" in self._reads:
                kept.append((seen.outputs, _rows(output, place.layout)))

            def with_gradient(gradient: Tensor) -> None:
                for held, rows in kept:
                    held.append(rows)
                if "gradients" in self._reads:
                    seen.gradients.append(_rows(gradient, place.layout))

            output.register_hook(with_gradient)  # type: ignore[no-untyped-call]

        return called


def _any(seen: Seen) -> bool:
    return bool(seen.inputs or seen.outputs or seen.gradients)


def _source(inputs: Any, output: Tensor, layout: Layout) -> Tensor:
    """Return the module's own input where it has the output's positions, its output otherwise."""
    first = inputs[0] if isinstance(inputs, tuple) and inputs and isinstance(inputs[0], Tensor) else output
    same = first.is_floating_point() and first.ndim == output.ndim
    return first if same and around(layout, tuple(first.shape)) == around(layout, tuple(output.shape)) else output


def _rows(tensor: Tensor, layout: Layout) -> Tensor:
    """Return positions as rows, evenly thinned to ``ROWS`` at most, as a copy of its own."""
    last = tensor.detach().movedim(1, -1) if layout.is_channels_first else tensor.detach()
    rows = last.reshape(-1, last.shape[-1])
    return rows[:: max(1, -(-len(rows) // ROWS))].clone()
