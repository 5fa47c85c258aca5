"""The training losses of a run, read without making training wait for an accelerator."""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor


class LossWatch:
    """Keeps losses on their device until they are asked for; whether one is finite is known sooner.

    On the CPU that is known at once. On CUDA it is copied beside the training and known when the copy is done, which is
    seldom later than the next step or two. On other devices it is known when the losses are read.

    Args:
        held: How many of the latest losses are kept.

    Attributes:
        latest: The losses that were read, finite ones only.
        bad_in_row: How many of the last losses known are not finite.
    """

    def __init__(self, held: int) -> None:
        self.latest: deque[float] = deque(maxlen=held)
        self.bad_in_row = 0
        self._unread: list[Tensor] = []
        self._copies: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def add(self, loss: Tensor) -> None:
        """Take one loss in."""
        kept = loss.detach().to(torch.promote_types(loss.dtype, torch.float32), copy=True)
        self._unread.append(kept)
        if kept.device.type == "cpu":
            self._count(math.isfinite(float(kept)))
        elif kept.device.type == "cuda":
            flag = torch.empty((), dtype=torch.bool, pin_memory=True)
            flag.copy_(torch.isfinite(kept), non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(torch.cuda.current_stream(kept.device))
            self._copies.append((flag, done))

    def glance(self) -> int:
        """Return ``bad_in_row`` as far as it is known without waiting."""
        while self._copies and self._copies[0][1].query():  # type: ignore[no-untyped-call]
            self._count(bool(self._copies.popleft()[0]))
        return self.bad_in_row

    def read(self) -> list[float]:
        """Return the losses since the last call; waits for an accelerator."""
        losses = [float(loss) for loss in self._unread] if len(self._unread) < 2 else _listed(self._unread)
        if self._unread and self._unread[0].device.type not in ("cpu", "cuda"):
            for loss in losses:
                self._count(math.isfinite(loss))
        for flag, done in self._copies:
            done.synchronize()
            self._count(bool(flag))
        self._copies.clear()
        self._unread.clear()
        self.latest.extend(loss for loss in losses if math.isfinite(loss))
        return losses

    def forget(self) -> None:
        """Begin anew, as after a rollback."""
        self.latest.clear()
        self._unread.clear()
        self._copies.clear()
        self.bad_in_row = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what was read; read first."""
        return {"latest": list(self.latest), "bad_in_row": self.bad_in_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.forget()
        self.latest.extend(state["latest"])
        self.bad_in_row = state["bad_in_row"]

    def _count(self, finite: bool) -> None:
        self.bad_in_row = 0 if finite else self.bad_in_row + 1


def _listed(losses: list[Tensor]) -> list[float]:
    if len({loss.device for loss in losses}) > 1:
        return [float(loss) for loss in losses]
    values: list[float] = torch.stack(losses).tolist()
    return values
