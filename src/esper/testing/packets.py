"""Packets as runs send them, drawn at random: every stage of a run, every shape of loss, every kind of mask."""

import math
import random
from collections.abc import Sequence

from esper.contracts.adaptation import Candidate, LossPoint, SlotState, SystemStatePacket

EVERY = 100
FREE = ("dormant",)
TAKEN = ("blending", "holding", "evaluating", "fossilized", "embargoed", "locked")
KINDS = ("gated_mixing", "gated", "mixing", "plain", "unheard_of")


def random_packet(draw: random.Random) -> SystemStatePacket:
    """Return a packet that a run could send.

    Args:
        draw: Where chance comes from.
    """
    boundary = draw.randint(1, 60)
    host = draw.randint(100, 10_000)
    slots = _slots(draw)
    params = host + draw.choice([0, 0, 500, 5_000])
    max_params = draw.choice([None, host, params + 300, params + 3_000, 10 * host])
    return SystemStatePacket(
        run_id=f"run-{draw.randint(0, 3)}",
        boundary=boundary,
        step=boundary * EVERY,
        every=EVERY,
        steps=draw.choice([None, (boundary + draw.randint(0, 60)) * EVERY]),
        topology_version=draw.randint(0, 6),
        lead=draw.randint(1, 3),
        host_params=host,
        params=params,
        max_params=max_params,
        history=_history(draw, boundary),
        grafts=tuple(sorted(draw.sample(range(1, boundary + 1), k=min(boundary, draw.randint(0, 4))))),
        slots=slots,
        candidates=_candidates(draw, slots),
    )


def _slots(draw: random.Random) -> tuple[SlotState, ...]:
    stage, slots = 0, []
    for order in range(draw.randint(0, 6)):
        stage += draw.random() < 0.4
        seeds = () if draw.random() < 0.5 else (draw.choice(FREE + TAKEN),)
        slots.append(SlotState(slot=f"block{order}", stage=stage, order=order, seeds=seeds))
    return tuple(slots)


def _candidates(draw: random.Random, slots: Sequence[SlotState]) -> tuple[Candidate, ...]:
    scored = draw.random() < 0.7
    candidates = []
    for slot in slots:
        score = draw.choice([draw.random(), 0.0, 0.5]) if scored else None
        kinds = draw.sample(KINDS, k=draw.randint(0, len(KINDS)))
        candidates += [_candidate(draw, slot, kind, score) for kind in kinds]
    return tuple(draw.sample(candidates, k=len(candidates)))


def _candidate(draw: random.Random, slot: SlotState, kind: str, score: float | None) -> Candidate:
    masked = _masks(draw, slot)
    missing = "kernel not ready" in masked or any(mask.startswith("refused") for mask in masked)
    return Candidate(
        slot=slot.slot,
        seed_idx=0,
        blueprint=f"{kind}_design",
        blueprint_id=f"sha256:{slot.slot}{kind}",
        kernel_id=None if missing else f"sha256:{slot.slot}{kind}kernel",
        kind=kind,
        stage=slot.stage,
        order=slot.order,
        params=draw.choice([10, 200, 1_000, 4_000]),
        flops=draw.randint(10, 10_000),
        score=score,
        masked=masked,
    )


def _masks(draw: random.Random, slot: SlotState) -> tuple[str, ...]:
    masks = [f"no free seed: {slot.seeds[0]}"] if slot.seeds and slot.seeds[0] != "dormant" else []
    masks += draw.choice([[], [], [], ["kernel not ready"], ["refused by the forge: dead"]])
    masks += draw.choice([[], [], [], ["over budget: 12 of 10 FLOPs"]])
    return tuple(masks)


def _history(draw: random.Random, boundary: int) -> tuple[LossPoint, ...]:
    shape = draw.choice(["falling", "settling", "flat", "rising", "noise"])
    gap, noise = draw.choice([None, 1.0, 0.1]), draw.choice([0.0, 0.01, 0.3])
    points = []
    for n in range(1, boundary + 1):
        validation = max(1e-6, _loss(shape, n) * (1 + draw.gauss(0, noise)))
        train = None if gap is None else gap * validation
        points.append(LossPoint(step=n * EVERY, train=train, validation=validation))
    if draw.random() < 0.05:
        points[-1] = points[-1].model_copy(update={"validation": draw.choice([math.nan, math.inf])})
    return tuple(points)[-draw.choice([256, 20]) :]


def _loss(shape: str, n: int) -> float:
    match shape:
        case "falling":
            return 3.0 / n
        case "settling":
            return 0.4 + math.exp(-n / 5)
        case "rising":
            return 0.3 + 0.02 * n
        case "noise":
            return 0.5 + (n * 7919 % 13) / 26
        case _:
            return 0.7
