"""Settings of the plateau controller, each with the origin of its value."""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Where(StrEnum):
    """Which place is grown next.

    BALANCED is the controller; the others share its *when*: HIGHEST_SCORE goes by the packet's signal alone, and the rest are
    null hypotheses.
    """

    BALANCED = "balanced"
    FRONT_FIRST = "front_first"
    RANDOM = "random"
    HIGHEST_SCORE = "highest_score"
    INVERSE = "inverse"


class PlateauConfig(BaseModel):
    """How the plateau controller decides.

    Attributes:
        where: Which place is grown next; ``random`` draws the blueprint too.
        seed: Of the draws of ``random``.
        startup_share: Share of the planned run before which nothing joins: losses and scores of an untrained network say
            little. A choice: one boundary of a run with twenty.
        early_share: Share of the planned run by which early grafts should have joined, evenly spread
            (decision 0007).
        latest_share: Share of the planned run after which a graft is not early any more (the same).
        plateau_boundaries: Boundaries since the last graft over which the held-out loss must be flat. A choice between
            PyTorch's ReduceLROnPlateau, whose patience is 10, and waiting less: with eight points a fall of a third of the
            noise per boundary is still told from none.
        least_fall_ratio: Fall over those boundaries that counts as falling, as a share of the loss. A choice: 1 %.
        plateau_grafts: Grafts that one plateau brings, at successive boundaries (decision 0007).
        least_remaining_share: Share of the planned run that must remain for a graft at a plateau
            (decision 0007).
        gap_boundaries: Boundaries over which a rising held-out loss counts for the veto. A choice: the fewest with a usable
            error of the slope.
        gap_ratio: Training loss below this share of the held-out loss is far below it. A choice, not measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    where: Where = Where.BALANCED
    seed: int = 0
    startup_share: float = Field(default=0.05, ge=0, lt=1)
    early_share: float = Field(default=0.25, gt=0, le=1)
    latest_share: float = Field(default=0.40, gt=0, le=1)
    plateau_boundaries: int = Field(default=8, ge=3)
    least_fall_ratio: float = Field(default=0.01, ge=0)
    plateau_grafts: int = Field(default=4, ge=1)
    least_remaining_share: float = Field(default=0.35, ge=0, le=1)
    gap_boundaries: int = Field(default=5, ge=3)
    gap_ratio: float = Field(default=0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _shares_follow_each_other(self) -> Self:
        if not self.startup_share <= self.early_share <= self.latest_share:
            raise ValueError("startup_share, early_share and latest_share rise in this order")
        return self

    @property
    def strategy(self) -> str:
        """The name that decisions carry."""
        return {
            Where.BALANCED: "plateau",
            Where.FRONT_FIRST: "front_first",
            Where.RANDOM: "random_growth",
            Where.HIGHEST_SCORE: "highest_score",
            Where.INVERSE: "inverse_score",
        }[self.where]
