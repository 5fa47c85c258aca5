"""The user's held-out losses, measured without leaving a trace in the model or the generators."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from esper.errors import ConfigError
from esper.kasmina.compiling import eager
from esper.kasmina.flop_counter import FlopCounter
from esper.kasmina.passage import Passage
from esper.kasmina.quiet import quiet_eval

Validate = Callable[[nn.Module], Tensor]
"""Returns a 1-D tensor of losses, one per held-out example or batch; never of the test split."""


@dataclass(frozen=True)
class Measurement:
    """Held-out losses at one moment.

    Attributes:
        losses: One per held-out example, float64 on the CPU.
        flops: Floating-point operations that measuring took.
        seen: The first call of the captured module, or None.
        agreed: Mean over the examples of every process, or None where this one is alone.
    """

    losses: Tensor
    flops: int
    seen: Passage | None = None
    agreed: float | None = None

    @property
    def mean(self) -> float:
        """Mean loss."""
        return float(self.losses.mean()) if self.agreed is None else self.agreed


class HeldOut:
    """Runs the user's ``validate`` in eval mode, without gradient, and puts everything back.

    Args:
        validate: The user's function.
        model: The model it is given.
    """

    def __init__(self, validate: Validate, model: nn.Module) -> None:
        self._validate = validate
        self._model = model
        self._flops: dict[int, int] = {}
        self.spent_flops = 0

    def counted(self) -> list[list[int]]:
        """Return the operations of each version of the topology that was counted."""
        return [list(item) for item in self._flops.items()]

    def take_counted(self, counted: list[list[int]]) -> None:
        """Take over what ``counted`` returned, so that a resumed run counts, and so runs eagerly, at the same moments."""
        self._flops = {item[0]: item[1] for item in counted}

    def measure(self, *, topology_version: int | None, capture: nn.Module | None = None) -> Measurement:
        """Measure the losses now; eagerly where compiled code would hide what is wanted: the output or the operations.

        Args:
            topology_version: FLOPs are counted once per version and reused; None counts them now, and keeps nothing.
            capture: A module whose first call is wanted too.

        Raises:
            ConfigError: If ``validate`` does not return a 1-D tensor of losses.
        """
        seen: list[Passage] = []
        hidden = capture is not None or topology_version not in self._flops
        with quiet_eval(self._model), eager() if hidden else nullcontext(), _captured(capture, seen):
            losses, flops = self._counted(topology_version)
        self.spent_flops += flops
        return Measurement(_checked(losses).detach().double().cpu(), flops, seen[0] if seen else None)

    def _counted(self, topology_version: int | None) -> tuple[object, int]:
        known = None if topology_version is None else self._flops.get(topology_version)
        if known is not None:
            return self._validate(self._model), known
        with FlopCounter() as counter:
            losses = self._validate(self._model)
        if topology_version is not None:
            self._flops[topology_version] = counter.total
        return losses, counter.total


def _checked(losses: object) -> Tensor:
    if isinstance(losses, Tensor) and losses.ndim == 1 and losses.numel() > 0 and losses.is_floating_point():
        return losses
    found = f"{type(losses).__name__}"
    if isinstance(losses, Tensor):
        found = f"a tensor of shape {tuple(losses.shape)} and type {losses.dtype}"
    raise ConfigError(
        f"validate returned {found}",
        why="it must return a 1-D floating tensor of losses, one per held-out example (or batch), so that a gain has an error",
        todo='use reduction="none" in the loss, and hold out at least one example',
        code="ESP-2120",
    )


@contextmanager
def _captured(module: nn.Module | None, seen: list[Passage]) -> Iterator[None]:
    if module is None:
        yield
        return

    def keep(called: nn.Module, args: tuple[object, ...], output: object) -> None:
        if called is module and not seen and isinstance(output, Tensor):
            seen.append(Passage.of(args, output))

    # torch's global hook: a module that has one of its own leaves its fast path, and computes other bits.
    hook = register_module_forward_hook(keep)
    try:
        yield
    finally:
        hook.remove()
