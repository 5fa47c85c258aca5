"""What a layer cannot learn by itself: the least squares that the signals of expressivity share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.kasmina.signals.activity import Seen

RIDGE = 1e-3
"""Ridge, as a share of the mean variance of a feature."""


@dataclass(frozen=True)
class Unmet:
    """The part of a wish that a layer's own weights cannot fulfil, in float64.

    Attributes:
        residual: Of shape ``rows channels``.
        energy: Sum of the squares of the residual.
        wished: Sum of the squares of the whole wish.
        flops: Floating-point operations that it took.
    """

    residual: Tensor
    energy: Tensor
    wished: Tensor
    flops: int


def unmet(seen: Seen) -> Unmet:
    """Regress the gradient at a slot's output on its input, with a constant and a ridge."""
    rows, y = joined(seen.inputs), joined(seen.gradients)
    x = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    residual = y - x @ torch.linalg.solve_ex(ridged(x.T @ x), x.T @ y).result
    (n, d), c = x.shape, y.shape[1]
    flops = 2 * n * d * d + 4 * n * d * c + 2 * d**3 // 3 + 2 * d * d * c
    return Unmet(residual, energy(residual), energy(y), flops)


def shares(parts: Sequence[Tensor], wholes: Sequence[Tensor]) -> Tensor:
    """Return each slot's part as a share of the sum of all wholes, in [0, 1]; a slot with a value that is not finite counts 0."""
    device = parts[0].device
    part, whole = (torch.stack([value.to(device) for value in values]) for values in (parts, wholes))
    sound = torch.isfinite(part) & torch.isfinite(whole)
    nothing = torch.zeros_like(whole)
    part, whole = torch.where(sound, part.minimum(whole), nothing), torch.where(sound, whole, nothing)
    total = whole.sum()
    return part / torch.where(total > 0, total, torch.ones_like(total))


def joined(calls: Sequence[Tensor]) -> Tensor:
    """Return the rows of all calls, in float64."""
    return (calls[0] if len(calls) == 1 else torch.cat(list(calls))).double()


def energy(rows: Tensor) -> Tensor:
    """Return the sum of squares."""
    flat = rows.reshape(-1)
    return flat.dot(flat)


def ridged(gram: Tensor) -> Tensor:
    """Return a Gram matrix with the ridge added in place."""
    diagonal = gram.diagonal()
    diagonal.add_(RIDGE * diagonal.mean())
    return gram
