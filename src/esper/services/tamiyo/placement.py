"""Where to grow, and what: spread over the stages, gated and mixing designs first."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from esper.contracts.adaptation import KERNEL_NOT_READY, OVER_BUDGET, Candidate, Reason, SystemStatePacket
from esper.ir.registry import Kind
from esper.services.tamiyo.config import Where

LIVE = frozenset({"blending", "holding", "evaluating", "fossilized"})
"""Lifecycle states in which a seed is part of the model."""
KINDS = (Kind.BLOCK, Kind.WIDENING, Kind.GATED_MIXING, Kind.GATED, Kind.MIXING, Kind.PLAIN)
"""Best first: a whole block on transformers; width where a perceptron is narrow (decision 0027); a gated conv beats a conv
bottleneck by 3.2 ± 0.6 points, and a plain 1×1 loses 0.9 (decision 0007)."""

Pair = tuple[str, str]
"""A slot and a blueprint."""


@dataclass(frozen=True)
class Choice:
    """One candidate, and why it.

    Attributes:
        candidate: The graft.
        why: The reason, in one line.
        evidence: The same in numbers.
        log_propensity: Logarithm of the probability with which it was drawn; 0 where nothing was drawn.
    """

    candidate: Candidate
    why: str
    evidence: tuple[Reason, ...]
    log_propensity: float = 0.0


def pool(packet: SystemStatePacket, undone: frozenset[Pair]) -> tuple[Candidate, ...]:
    """Return the candidates that may be chosen, those whose kernel is still being compiled included.

    What only rescales what is there is left to hands: it has no capacity, and would be the cheapest.

    Args:
        packet: The state of the run.
        undone: Slots and blueprints whose graft did not stay; they come back only when nothing else is left.
    """
    last = max((c.order for c in packet.candidates if c.kind == Kind.BLOCK), default=0)
    offered = (
        c
        for c in packet.candidates
        if c.kind != Kind.RECALIBRATING and (c.kind != Kind.BLOCK or c.order == last)  # never in front of a trained one
    )
    possible = tuple(c for c in offered if (is_ready(c) or is_pending(c)) and fits(c, packet))
    fresh = tuple(c for c in possible if (c.slot, c.blueprint) not in undone)
    return fresh or possible


def is_ready(candidate: Candidate) -> bool:
    """Whether it may be chosen now."""
    return candidate.kernel_id is not None and not candidate.masked


def is_pending(candidate: Candidate) -> bool:
    """Whether only its kernel is missing."""
    return candidate.kernel_id is None and set(candidate.masked) <= {KERNEL_NOT_READY}


def fits(candidate: Candidate, packet: SystemStatePacket) -> bool:
    """Whether the budget has room for it."""
    return packet.max_params is None or packet.params + candidate.params <= packet.max_params


def room(candidates: Sequence[Candidate], packet: SystemStatePacket) -> int:
    """Return how many slots could still be grown within the budget at most, each with its best design."""
    total, count = packet.params, 0
    for params in sorted(best_design(there).params for there in _by_slot(candidates).values()):
        total += params
        if packet.max_params is not None and total > packet.max_params:
            break
        count += 1
    return count


def masks(candidates: Iterable[Candidate]) -> str:
    """Say why nothing may be chosen, with how many candidates each reason holds back."""
    counts = Counter(mask.partition(":")[0] for c in candidates for mask in c.masked or (OVER_BUDGET,))
    return ", ".join(f"{mask} ({count})" for mask, count in sorted(counts.items()))


def choose(candidates: Sequence[Candidate], packet: SystemStatePacket, where: Where, *, seed: int) -> Choice:
    """Choose among candidates.

    Args:
        candidates: At least one; see ``pool``.
        packet: The state of the run.
        where: The rule.
        seed: Of the draws of ``Where.RANDOM``; with it the draw depends on boundary and topology alone.
    """
    if where is Where.RANDOM:
        return _drawn(candidates, packet, seed)
    slot, why, evidence = _RULES[where](_by_slot(candidates), packet)
    candidate = best_design(_by_slot(candidates)[slot])
    return Choice(candidate, why, (*evidence, *_score(candidate, packet)))


def best_design(candidates: Sequence[Candidate]) -> Candidate:
    """Return the best kind at one slot; among equals the cheapest."""
    return min(candidates, key=lambda c: (_rank(c.kind), c.params, c.flops, c.blueprint))


def _rank(kind: str) -> int:
    return KINDS.index(Kind(kind)) if kind in KINDS else len(KINDS)


# -- where ---------------------------------------------------------------------------------------------------------------

Slots = dict[str, list[Candidate]]
Place = tuple[str, str, tuple[Reason, ...]]


def _balanced(slots: Slots, packet: SystemStatePacket) -> Place:
    """Append a whole block; where none can be, take the emptiest stage, among equals the highest score, and its foremost slot."""
    blocks = [c for there in slots.values() for c in there if c.kind == Kind.BLOCK]
    if blocks:
        order = Reason(text="position in the forward pass", name="order", value=blocks[0].order)
        return blocks[0].slot, "a whole block, behind the last one", (order,)
    shares = stage_shares(packet)
    emptiest = min(shares.get(there[0].stage, 0.0) for there in slots.values())
    fronts: dict[int, Candidate] = {}
    for there in sorted(slots.values(), key=lambda there: there[0].order):
        if shares.get(there[0].stage, 0.0) == emptiest:
            fronts.setdefault(there[0].stage, there[0])
    first = min(fronts.values(), key=lambda c: (-_score_of(c, missing=-math.inf), c.order, c.slot))
    share = Reason(text=f"share of stage {first.stage} that is grown", name="stage_share", value=emptiest)
    return first.slot, _told(first, packet, f"first open slot of stage {first.stage}"), (share,)


def _front_first(slots: Slots, packet: SystemStatePacket) -> Place:
    first = min((there[0] for there in slots.values()), key=lambda c: (c.order, c.slot))
    order = Reason(text="position in the forward pass", name="order", value=first.order)
    return first.slot, _told(first, packet, "foremost open slot"), (order,)


def _highest_score(slots: Slots, packet: SystemStatePacket) -> Place:
    """Take the slot that the score speaks for most."""
    first = min(
        (there[0] for there in slots.values()), key=lambda c: (-_score_of(c, missing=-math.inf), c.order, c.slot)
    )
    return first.slot, _told(first, packet, "foremost open slot"), ()


def _inverse(slots: Slots, packet: SystemStatePacket) -> Place:
    """Take the slot that the score speaks against most, as a null hypothesis."""
    last = min((there[0] for there in slots.values()), key=lambda c: (_score_of(c, missing=math.inf), c.order, c.slot))
    return last.slot, _told(last, packet, "foremost open slot"), ()


_RULES: dict[Where, Callable[[Slots, SystemStatePacket], Place]] = {
    Where.BALANCED: _balanced,
    Where.FRONT_FIRST: _front_first,
    Where.HIGHEST_SCORE: _highest_score,
    Where.INVERSE: _inverse,
}


def _drawn(candidates: Sequence[Candidate], packet: SystemStatePacket, seed: int) -> Choice:
    """Draw a slot, then a blueprint there, each uniformly."""
    # Not the run's id, which is new with every run: equal seeds must give equal draws.
    draw = random.Random(f"{seed}:{packet.boundary}:{packet.topology_version}")
    slots = _by_slot(candidates)
    there = slots[draw.choice(sorted(slots))]
    candidate = draw.choice(sorted(there, key=lambda c: c.blueprint))
    probability = 1 / (len(slots) * len(there))
    drawn = Reason(text="probability of this draw", name="propensity", value=probability)
    why = f"drawn from {len(candidates)} candidates"
    return Choice(candidate, why, (drawn, *_score(candidate, packet)), math.log(probability))


def stage_shares(packet: SystemStatePacket) -> dict[int, float]:
    """Return how many grafts live in each stage, relative to its slots."""
    slots: Counter[int] = Counter()
    grafts: Counter[int] = Counter()
    for slot in packet.slots:
        slots[slot.stage] += 1
        grafts[slot.stage] += sum(state in LIVE for state in slot.seeds)
    return {stage: grafts[stage] / count for stage, count in slots.items()}


def _by_slot(candidates: Iterable[Candidate]) -> Slots:
    slots: Slots = defaultdict(list)
    for candidate in candidates:
        slots[candidate.slot].append(candidate)
    return dict(slots)


def _score_of(candidate: Candidate, *, missing: float) -> float:
    measured = candidate.score is not None and math.isfinite(candidate.score)
    return candidate.score if measured and candidate.score is not None else missing


def _told(candidate: Candidate, packet: SystemStatePacket, otherwise: str) -> str:
    return f"{_score_name(packet)} {candidate.score:.2g}" if candidate.score is not None else otherwise


def _score(candidate: Candidate, packet: SystemStatePacket) -> tuple[Reason, ...]:
    if candidate.score is None:
        return ()
    name = _score_name(packet)
    return (Reason(text=f"{name} of the slot", name=name.replace(" ", "_"), value=candidate.score),)


def _score_name(packet: SystemStatePacket) -> str:
    return f"{packet.signal.replace('_', ' ')} score"
