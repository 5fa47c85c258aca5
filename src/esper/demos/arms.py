"""The arms of a demo: what esper does, and the controls that it has to stand beside."""

from enum import StrEnum


class Arm(StrEnum):
    """One way to train, paired with the others by initial weights and batches."""

    STATIC_SMALL = "static_small"
    STATIC_SMALL_EQUAL_FLOPS = "static_small_equal_flops"
    ESPER = "esper"
    STATIC_FINAL = "static_final"
    STATIC_FINAL_EQUAL_FLOPS = "static_final_equal_flops"
    RANDOM_GROWTH = "random_growth"
    FRONT_FIRST = "front_first"

    @property
    def label(self) -> str:
        """The arm as a person reads it."""
        return _LABELS.get(self, self.value.replace("_", " "))

    @property
    def grows(self) -> bool:
        """Whether it starts small and grows."""
        return self in GROWING

    @property
    def is_final(self) -> bool:
        """Whether it starts with everything that esper ended with on the same seed."""
        return self in (Arm.STATIC_FINAL, Arm.STATIC_FINAL_EQUAL_FLOPS)

    @property
    def spends_as_esper(self) -> bool:
        """Whether it trains for as many FLOPs as esper spent on the same seed, instead of as many steps."""
        return self in (Arm.STATIC_SMALL_EQUAL_FLOPS, Arm.STATIC_FINAL_EQUAL_FLOPS)

    @property
    def follows_esper(self) -> bool:
        """Whether it needs what esper did on the same seed."""
        return self.is_final or self.spends_as_esper


GROWING = (Arm.ESPER, Arm.RANDOM_GROWTH, Arm.FRONT_FIRST)
"""Arms with ``esper.attach``; they differ in where the controller grows."""

LONGEST_FIRST = (
    Arm.ESPER,
    Arm.STATIC_SMALL_EQUAL_FLOPS,
    Arm.STATIC_FINAL,
    Arm.STATIC_FINAL_EQUAL_FLOPS,
    Arm.RANDOM_GROWTH,
    Arm.FRONT_FIRST,
    Arm.STATIC_SMALL,
)
"""Order in which the arms of one seed are begun: others wait for esper, and short ones fill the gaps at the end."""

_LABELS = {
    Arm.STATIC_SMALL_EQUAL_FLOPS: "static small, esper's FLOPs",
    Arm.STATIC_FINAL_EQUAL_FLOPS: "static final, esper's FLOPs",
}
