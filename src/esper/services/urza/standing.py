"""What a kernel is good at: tags that say how it stands among others that were measured on the same hardware.

They are tags of its blueprint like any other, and searched for as such; a measurement sets them and takes them away.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import case, delete, func, select, update
from sqlalchemy.orm import Session

from esper.services.urza.base import now
from esper.services.urza.models import BenchmarkResult, Blueprint, BlueprintTerm, Kernel
from esper.services.urza.terms import bits_of, tag_term

FEWEST_PEERS = 30
"""Among fewer a quarter is seven, and says little: a rule decides."""
MOST_PEERS = 1000
"""The latest; a place among so many is known to 1.4 points."""
BEST_SHARE = 0.25


@dataclass(frozen=True)
class Trait:
    """Something to be good at.

    Attributes:
        tag: What whoever is good at it is called.
        metric: What is measured; less is better.
        rule: The most that is good while there are too few peers.
    """

    tag: str
    metric: str
    rule: float


TRAITS = (
    Trait("high_speed", "latency_p50_ms", 0.038),
    Trait("low_memory", "memory_mb", 0.016),
    Trait("fast_training", "training_step_p50_ms", 0.57),
)
"""Rules are where the best quarter of the catalogue lies at 32 channels on one core of a server of 2024."""


def call(session: Session, kernel: Kernel, hardware: str, metrics: Mapping[str, float]) -> None:
    """Give the blueprint of a kernel the tags that its measurement earned, and take away those that it did not.

    Args:
        session: A transaction, in which the measurement is written.
        kernel: What was measured.
        hardware: On what.
        metrics: What came out.
    """
    term = BlueprintTerm
    measured = [trait for trait in TRAITS if trait.metric in metrics]
    earned = {
        tag_term(trait.tag)
        for trait in measured
        if _is_good(session, kernel.id, hardware, trait, metrics[trait.metric])
    }
    of_blueprint = (term.blueprint_id == kernel.blueprint_id) & term.term.in_(
        [tag_term(trait.tag) for trait in measured]
    )
    held = set(session.scalars(select(term.term).where(of_blueprint)))
    if lost := held - earned:
        session.execute(delete(term).where(of_blueprint, term.term.in_(lost)))
    session.add_all(
        term(blueprint_id=kernel.blueprint_id, term=one, bits=bits_of(one)) for one in sorted(earned - held)
    )
    if earned != held:
        session.execute(update(Blueprint).where(Blueprint.id == kernel.blueprint_id).values(updated_at=now()))
    session.flush()


def _is_good(session: Session, kernel_id: str, hardware: str, trait: Trait, value: float) -> bool:
    row = BenchmarkResult
    latest = (
        select(row.value)
        .where(row.device == hardware, row.metric == trait.metric, row.kernel_id != kernel_id)
        .order_by(row.measured_at.desc())
        .limit(MOST_PEERS)
        .subquery()
    )
    better = func.sum(case((latest.c.value < value, 1), else_=0))
    peers, ahead = (session.execute(select(func.count(), better).select_from(latest))).one()
    if peers < FEWEST_PEERS:
        return value <= trait.rule
    return bool(ahead < BEST_SHARE * peers)
