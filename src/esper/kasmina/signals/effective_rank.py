"""Effective rank: how many of its directions a layer's activity really uses."""

from collections.abc import Mapping

import torch
from torch import Tensor

from esper.kasmina.signals.activity import Seen
from esper.kasmina.signals.least_squares import joined
from esper.kasmina.signals.signal import Scores


def used_width(seen: Mapping[str, Seen]) -> Scores:
    """Return the effective rank of each slot's output as a share of its channels, in (0, 1]; 0 where nothing varies.

    A layer that uses every direction it has may want more of them.

    References:
        Roy, Vetterli 2007, "The Effective Rank: A Measure of Effective Dimensionality".
    """
    values, flops = {}, 0
    for name, slot in seen.items():
        rows = joined(slot.outputs)
        n, c = rows.shape
        values[name] = effective_rank(rows - rows.mean(0)) / c
        flops += 2 * n * c * c + 4 * c**3 // 3  # Golub, Van Loan 2013, section 8.3: the eigenvalues alone
    return Scores(values, flops)


def effective_rank(rows: Tensor) -> Tensor:
    """Return exp of the entropy of the singular values, each as a share of their sum; 0 of nothing and of what is not finite."""
    gram = rows.T @ rows
    sound = torch.isfinite(gram).all()
    singular = torch.linalg.eigvalsh(torch.where(sound, gram, torch.zeros_like(gram))).clamp_min(0).sqrt()
    total = singular.sum()
    share = singular / torch.where(total > 0, total, torch.ones_like(total))
    rank = torch.special.entr(share).sum().exp()
    return torch.where(total > 0, rank, torch.zeros_like(rank))
