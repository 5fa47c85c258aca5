"""What a graft may be held against beside the run's own past; attached by those who have the batches."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from esper.services.tolaria.acceptance import Judgement
from esper.services.tolaria.snapshot import Snapshot


@runtime_checkable
class Control(Protocol):
    """The same training without the graft."""

    @property
    def flops(self) -> dict[str, int]:
        """Floating-point operations that it spent, by purpose."""
        ...

    def joined(self, key: str, before: Snapshot) -> None:
        """Begin from the state before a join; called within the boundary, it leaves the training as it is.

        Args:
            key: Of the graft's trial.
            before: Not changed by the run from here on, and not to be changed.
        """
        ...

    def rise(self, slot: str, seed_idx: int, alpha: float) -> None:
        """Let a graft that it has too, one that joined earlier, have the strength that it has in the run now."""
        ...

    def compare(self, losses: Tensor) -> None:
        """Hold the held-out losses of the run's averaged weights at a boundary against its own, example by example."""
        ...

    def found(self, key: str) -> Judgement | None:
        """Return what it says of a graft; None where it has nothing to say."""
        ...

    def left(self, key: str) -> None:
        """End where it was for this graft, whose trial is over."""
        ...

    def void(self) -> None:
        """End: the run is another one now than it was held against."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers, numbers, strings and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``, or from an empty one."""
        ...


class NoControl:
    """Nothing but the run's own past."""

    @property
    def flops(self) -> dict[str, int]:
        """Nothing is spent."""
        return {}

    def joined(self, key: str, before: Snapshot) -> None:
        """Begin nothing."""

    def rise(self, slot: str, seed_idx: int, alpha: float) -> None:
        """Have no graft."""

    def compare(self, losses: Tensor) -> None:
        """Have no losses."""

    def found(self, key: str) -> Judgement | None:
        """Have nothing to say."""
        return None

    def left(self, key: str) -> None:
        """End nothing."""

    def void(self) -> None:
        """End nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on without what another run had; its grafts are judged by graft-free windows."""
