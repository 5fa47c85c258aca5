"""Settings of a growing run, each with the origin of its value."""

from dataclasses import dataclass
from enum import StrEnum

from esper.errors import ConfigError
from esper.kasmina.signals import DEFAULT as DEFAULT_SIGNAL
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
class GovernorConfig:
    """How the governor judges.

    Attributes:
        false_alarms: Probability with which a run ever has a sound graft taken back for a training loss that rose by chance;
            the k-th graft has a share of 6 / (π k)² of it.
        margin_ratio: Rises by less than this share of the median training loss are left to the evaluation of the graft.
        reference_losses: Training losses before a join that those after it are held against; below 32 blocks there is no
            test (``esper.detect.regression``).
        patience: Training losses in a row that are not finite before a training whose weights are finite counts as lost;
            a gradient scaler may skip a step or two.
        last_known_good: Whether the state at each boundary that passed is kept while something has grown. Values that
            are not finite then cost the steps since that boundary, and no graft. Costs memory for one more state, and a
            copy of it at each boundary.
    """

    false_alarms: float = 1e-3
    margin_ratio: float = 0.1
    reference_losses: int = 256
    patience: int = 3
    last_known_good: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.false_alarms < 1:
            raise ConfigError(
                f"false_alarms={self.false_alarms!r}", why="a probability lies between 0 and 1", code="ESP-2195"
            )
        if self.margin_ratio < 0 or self.reference_losses < 1 or self.patience < 1:
            raise ConfigError(
                "a setting of the governor is out of range",
                why=f"margin_ratio={self.margin_ratio!r}, reference_losses={self.reference_losses!r}, "
                f"patience={self.patience!r}",
                todo="give no negative margin, and 1 or more of the others",
                code="ESP-2195",
            )


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
        governor: How the governor judges, or None for none.
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
        signal: Name of the measurement by which slots are scored (``esper.kasmina.signals``).
        newborn_rate: How a newborn's learning rate differs from its host's at first; None for the host's (decision 0007).
    """

    every: int
    steps: int | None = None
    lead: int = 1
    late: Late = Late.SLIP
    on_cull: OnCull = OnCull.RESTORE
    incubate: int = 0
    governor: GovernorConfig | None = GovernorConfig()
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
    signal: str = DEFAULT_SIGNAL
    newborn_rate: NewbornRate | None = None

    @property
    def stride(self) -> int:
        """Optimizer steps between two whose weights are taken into their mean."""
        return max(1, self.every // self.averages_per_window)
