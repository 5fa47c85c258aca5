"""Does the bus keep its promises while everything around it fails?

Seeded schedules of faults are played on real processes: servers, readers and writers are killed, frozen and restarted,
connections reset, cut, held, half-open, slow or refused, clocks leap, disks fill up. Every process notes what it did; a checker
then looks for acknowledged messages that were lost, effects that were doubled, broken order and invented messages. Readers that
are wrong on purpose, in the same run, show that it would have found them.
"""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from benchmarks.support.chaos_plan import BusKind, Flaw
from benchmarks.support.chaos_stage import Outcome, outcome_of
from benchmarks.support.report import ROOT, Answer, Target
from esper.testing.history import Promise

SCHEDULES, QUICK_SCHEDULES = 100, 4
CONTROLS, QUICK_CONTROLS = 4, 1
LANES = 2
LIMIT_S = 600.0
_BROKEN_BY = {Flaw.EARLY: Promise.LOST, Flaw.FORGETFUL: Promise.DOUBLED}


def answer(*, quick: bool, seed: int) -> Answer:
    """Play schedules, two at a time, and count broken promises."""
    number, controls = (QUICK_SCHEDULES, QUICK_CONTROLS) if quick else (SCHEDULES, CONTROLS)
    # Different seeds of the benchmark share no schedule.
    seeds = range(1000 * seed, 1000 * seed + number)
    orders = [(n, Flaw.NONE) for n in seeds] + [(n, flaw) for flaw in _BROKEN_BY for n in seeds[:controls]]
    with ThreadPoolExecutor(LANES) as lanes:
        outcomes = list(lanes.map(lambda order: _played(*order), orders))
    return judged(outcomes[:number], list(zip(orders, outcomes, strict=True))[number:])


def judged(outcomes: list[Outcome], controls: list[tuple[tuple[int, Flaw], Outcome]]) -> Answer:
    """Return what schedules found.

    Args:
        outcomes: Of schedules in which every reader was sound.
        controls: Seed, flaw and outcome of those in which they were not.
    """
    for outcome in outcomes:
        if not outcome.is_sound:
            _tell(outcome)
    result = Answer(
        method=f"{len(outcomes)} seeded schedules of 2 to 12 faults within 3 s of traffic, {LANES} at a time, on Redis Streams "
        "(AOF always) and on the journaled in-process bus; two writers, one group of one reader and one of two; effects are rows "
        "committed with the id of their message; then every fault heals, and what all processes noted is checked"
    )
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
    broken = Counter(str(breach[0]) for outcome in outcomes for breach in outcome.breaches)
    result.metrics = {
        "schedules": len(outcomes),
        **{f"schedules_on_{kind}": sum(outcome.bus == kind for outcome in outcomes) for kind in BusKind},
        **{f"messages_{name}": counts[name] for name in ("acknowledged", "refused", "handed", "redelivered", "buried")},
        "effects": counts["effect"],
        **{f"faults_{name}": n for name, n in sorted(_faults(outcomes).items())},
        "schedule_longest_s": max(outcome.took_s for outcome in outcomes),
    }
    found = {
        flaw: [
            any(breach[0] == promise for breach in outcome.breaches) for (_, its), outcome in controls if its is flaw
        ]
        for flaw, promise in _BROKEN_BY.items()
    }
    result.baselines = {f"schedules_with_{flaw}_readers": len(seen) for flaw, seen in found.items()}
    result.baselines |= {f"{_BROKEN_BY[flaw]}_found_with_{flaw}_readers": sum(seen) for flaw, seen in found.items()}
    result.ratios = {"sound_over_schedules": sum(outcome.is_sound for outcome in outcomes) / len(outcomes)}
    result.targets = [
        *(Target(promise, "==", 0.0, float(broken[promise])) for promise in Promise),
        Target("processes_that_crashed", "==", 0.0, float(sum(len(outcome.crashes) for outcome in outcomes))),
        *(
            Target(f"planted_{_BROKEN_BY[f]}_found", "==", float(len(seen)), float(sum(seen)))
            for f, seen in found.items()
        ),
    ]
    return result


def _faults(outcomes: list[Outcome]) -> Counter[str]:
    struck: Counter[str] = Counter()
    for outcome in outcomes:
        struck.update(name.replace(" ", "_") for name in outcome.struck)
    return struck


def _played(seed: int, flaw: Flaw) -> Outcome:
    """Play one schedule in a process of its own; one that does not end is a failure like any other."""
    command = [sys.executable, "-m", "benchmarks.support.chaos_stage", str(seed), "--flaw", flaw.value]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
        return outcome_of(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        return Outcome(seed, BusKind.REDIS, [], crashes=[f"the schedule did not end: {error}"])


def _tell(outcome: Outcome) -> None:
    """Say what broke, and how to see it again."""
    lines = [f"schedule {outcome.seed} on {outcome.bus}: {'; '.join(outcome.faults)}"]
    lines += [f"  {' '.join(map(str, breach))}" for breach in outcome.breaches[:10]]
    lines += [f"  {crash}" for crash in outcome.crashes]
    lines.append(f"  play it again: python -m benchmarks.support.chaos_stage {outcome.seed}")
    print("\n".join(lines), file=sys.stderr)
