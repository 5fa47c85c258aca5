"""The controllers of the growing arms: the product's own, and the two null hypotheses about where to grow."""

from typing import TYPE_CHECKING

from esper.demos.arms import Arm

if TYPE_CHECKING:
    from esper.services.tolaria.consultation import Decides


def controller_of(arm: Arm, *, seed: int) -> "str | Decides":
    """Return what ``esper.attach`` takes as ``controller`` in a growing arm.

    Args:
        arm: ``ESPER`` has the default; ``RANDOM_GROWTH`` and ``FRONT_FIRST`` differ from it in where they grow alone.
        seed: Of the random one.
    """
    from esper.services.tamiyo.config import PlateauConfig, Where
    from esper.services.tamiyo.plateau import PlateauAdvisor

    if arm is Arm.ESPER:
        return "plateau"
    where = Where.RANDOM if arm is Arm.RANDOM_GROWTH else Where.FRONT_FIRST
    return PlateauAdvisor(PlateauConfig(where=where, seed=seed))
