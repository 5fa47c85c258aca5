"""Mixed precision: autocast, and a scaler where gradients could vanish."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

PRECISIONS: dict[str, torch.dtype | None] = {
    "float32": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Precision:
    """Runs forward passes under autocast and scales losses for float16.

    Args:
        dtype: Of autocast; None leaves it out.
        device: Where the model is.

    Attributes:
        scaler: Scales float16 losses, or None.
        skipped: Optimizer steps that were left out because a scaled gradient was not finite.
    """

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self._dtype, self._device = dtype, device.type
        self.scaler = GradScaler(self._device) if dtype is torch.float16 else None
        self.skipped = 0

    def autocast(self) -> AbstractContextManager[object]:
        """Context of a forward pass."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss, scaled where that is needed."""
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, before anything looks at them."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: Optimizer) -> bool:
        """Step the optimizer; False where the scaler left the step out."""
        if self.scaler is None:
            optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        stepped = self.scaler.get_scale() >= before
        self.skipped += not stepped
        return stepped
