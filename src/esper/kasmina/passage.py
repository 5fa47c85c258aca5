"""What passed through a slot's module in one call."""

from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from esper.ir import Reads
from esper.kasmina.grafted import as_entered, dense, first_of


@dataclass(frozen=True)
class Passage:
    """One call of a slot's module, as copies of their own.

    Attributes:
        left: What it returned.
        entered: Its first argument; None where that was no tensor.
    """

    left: Tensor
    entered: Tensor | None = None

    @classmethod
    def of(cls, args: tuple[Any, ...], output: Tensor) -> Self:
        """Copy what a hook was shown; nested tensors are padded."""
        first = first_of(args)
        return cls(_copy(output), _copy(first) if isinstance(first, Tensor) else None)

    def given(self, reads: Reads) -> Tensor:
        """Return what a graft reads of it.

        Raises:
            ConfigError: If nothing entered that it could read.
        """
        return self.left if reads is Reads.OUTPUT else as_entered(self.entered)


def _copy(tensor: Tensor) -> Tensor:
    copied: Tensor = dense(tensor).detach().clone()
    return copied
