"""The expressivity bottleneck: the part of the wished-for change of a layer that it cannot make itself."""

from collections.abc import Mapping

from esper.kasmina.signals.activity import Seen
from esper.kasmina.signals.least_squares import shares, unmet
from esper.kasmina.signals.signal import Scores


def bottleneck(seen: Mapping[str, Seen]) -> Scores:
    """Return the energy of the wish that is left at each slot, as a share of what all slots wish for, in [0, 1].

    The gradient of the loss with respect to a slot's output is regressed on the slot's input (on its output where the
    positions differ). What remains is a change that the layer's own linear weights cannot make.

    References:
        Verbockhaven, Rudkiewicz, Chevallier, Charpiat 2024, "Growing Tiny Networks: Spotting Expressivity Bottlenecks and
        Fixing Them Optimally".
    """
    if not seen:
        return Scores({})
    left = [unmet(slot) for slot in seen.values()]
    found = shares([part.energy for part in left], [part.wished for part in left])
    return Scores(dict(zip(seen, found, strict=True)), sum(part.flops for part in left))
