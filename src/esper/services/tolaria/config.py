"""Settings of a growing run, each with the origin of its value."""

from dataclasses import dataclass
from enum import StrEnum

from esper.errors import ConfigError
from esper.services.tolaria.newborn_rate import NewbornRate


def check_incubation(steps: object) -> None:
    """Refuse what is no number of steps.

    Raises:
        ConfigError: If it is none.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ConfigError(
            f"incubate={steps!r}",
            why="a kernel learns apart for a number of optimizer steps",
            todo="give that number; 0 joins it at once",
            code="ESP-2124",
        )


class Late(StrEnum):
    """What happens when a decision or its kernel is not there at the joining boundary."""

    SLIP = "slip"
    WAIT = "wait"


class OnCull(StrEnum):
    """What a cull does with the host."""

    RESTORE = "restore"
    CONTINUE = "continue"


@dataclass(frozen=True)
class GrowthConfig:
    """How a run grows.

    Attributes:
        every: Optimizer steps from one boundary to the next.
        steps: Planned length of the run in optimizer steps, or None.
        lead: Boundaries between a decision and its joining.
        late: What a late decision or kernel does.
        on_cull: Whether a cull restores the state before the join or trains on without the seed.
        incubate: Optimizer steps that a kernel which a controller chose learns apart before it joins; 0 joins it at once.
        settle_boundaries: Boundaries a newborn blends before it is held; the strength of one that learned apart rises so long.
        evaluation_share: Share of the run that remained at the join after which a graft is judged; shorter horizons do not
            predict (decision 0007).
        fewest_evaluation_boundaries: A graft is never judged sooner.
        open_evaluation_boundaries: After how many a graft is judged where ``steps`` is not known.
        embargo_boundaries: How long a slot rests after a cull.
        seeds_per_slot: Grafts that one slot may hold.
        snapshots_held: States before a join that are kept in memory for a cull or rollback.
        averages_per_window: How often between two boundaries the weights are taken into their mean.
        history_length: Boundaries whose losses a packet carries.
        neutral_tolerance: Largest change of a slot's output that a newborn may make (law 2).
        wait_limit_s: How long a deliberate wait may last.
        newborn_rate: How a newborn's learning rate differs from its host's at first; None for the host's (decision 0007).
    """

    every: int
    steps: int | None = None
    lead: int = 1
    late: Late = Late.SLIP
    on_cull: OnCull = OnCull.RESTORE
    incubate: int = 0
    settle_boundaries: int = 1
    evaluation_share: float = 0.3
    fewest_evaluation_boundaries: int = 3
    open_evaluation_boundaries: int = 10
    embargo_boundaries: int = 5
    seeds_per_slot: int = 1
    snapshots_held: int = 2
    averages_per_window: int = 20
    history_length: int = 256
    neutral_tolerance: float = 1e-6
    wait_limit_s: float = 120.0
    newborn_rate: NewbornRate | None = None
