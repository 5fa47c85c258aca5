"""TINY's residual: the part of the bottleneck that the best few new neurons would take away."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from esper.kasmina.signals.activity import Seen
from esper.kasmina.signals.least_squares import joined, ridged, shares, unmet
from esper.kasmina.signals.signal import Scores

NEURONS = 16
"""Neurons that are thought of; the fewest that a blueprint of the catalogue is wide, where its host is narrow."""


def tiny_residual(seen: Mapping[str, Seen]) -> Scores:
    """Return what the best ``NEURONS`` would take away at each slot, as a share of what all slots wish for, in [0, 1].

    A neuron reads the activity at the slot's output, as a graft does, and adds to it. To first order in its weights the best
    ones are the leading singular pairs of S^(-1/2) N, S being the covariance of that activity and N its covariance with what
    the layer's own weights leave of the wish; the squares of the singular values are what they take away. The activity is
    the gelu of the output in units of its root mean square, since slots may return values before their nonlinearity.

    References:
        Verbockhaven, Rudkiewicz, Chevallier, Charpiat 2024, "Growing Tiny Networks: Spotting Expressivity Bottlenecks and
        Fixing Them Optimally", proposition 3.
    """
    if not seen:
        return Scores({})
    left = [unmet(slot) for slot in seen.values()]
    taken = [
        taken_away(activity(joined(s.outputs)), part.residual) for s, part in zip(seen.values(), left, strict=True)
    ]
    found = shares([energy for energy, _ in taken], [part.wished for part in left])
    flops = sum(part.flops for part in left) + sum(spent for _, spent in taken)
    return Scores(dict(zip(seen, found, strict=True)), flops)


def activity(rows: Tensor) -> Tensor:
    """Return what a neuron at the output would read."""
    scale = rows.square().mean().sqrt()
    return functional.gelu(rows / torch.where(scale > 0, scale, torch.ones_like(scale)))


def taken_away(activity: Tensor, residual: Tensor) -> tuple[Tensor, int]:
    """Return the energy of the residual that the best neurons take away, and the floating-point operations that it took."""
    covariance = activity.T @ residual
    factor = torch.linalg.cholesky_ex(ridged(activity.T @ activity)).L
    # Any square root of S will do: the singular values are the same.
    whitened = torch.linalg.solve_triangular(factor, covariance, upper=False)
    sound = torch.isfinite(whitened).all()
    values = torch.linalg.svdvals(torch.where(sound, whitened, torch.zeros_like(whitened)))
    taken = torch.where(sound, values[:NEURONS].square().sum(), torch.nan)
    (n, d), c = activity.shape, residual.shape[1]
    least, most = sorted((d, c))
    # Golub, Van Loan 2013, "Matrix Computations", figure 8.6.1: the singular values alone.
    return taken, 2 * n * d * (d + c) + d**3 // 3 + d * d * c + 4 * most * least**2 - 4 * least**3 // 3
