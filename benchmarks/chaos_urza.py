"""Does the store keep its promises while its processes are killed?

Callers submit designs, complete builds, retire kernels and report outcomes over HTTP; meanwhile the service, PostgreSQL or the S3
server, or two of them, are ended by SIGKILL at seeded random moments and started again. The S3 server keeps objects as files and
syncs them before it answers. Afterwards what callers were told is held against what is there: rows by ``psql``, bytes from the
disk, messages on the bus. Faults planted in what is left must be found by the same checker.
"""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from benchmarks.support.report import ROOT, Answer, Target
from benchmarks.support.store_history import Promise
from benchmarks.support.store_stage import STRIKES, Outcome, Victim, outcome_of

SCHEDULES, QUICK_SCHEDULES = 20, 1
WITH_PLANTS = 2
LANES = 2
LIMIT_S = 900.0


def answer(*, quick: bool, seed: int) -> Answer:
    """Play schedules, two at a time, and count broken promises."""
    number = QUICK_SCHEDULES if quick else SCHEDULES
    # Different seeds of the benchmark share no schedule.
    seeds = range(1000 * seed, 1000 * seed + number)
    with ThreadPoolExecutor(LANES) as lanes:
        return judged(list(lanes.map(lambda n: _played(n, plants=n - seeds[0] < WITH_PLANTS), seeds)))


def judged(outcomes: list[Outcome]) -> Answer:
    """Return what schedules found."""
    for outcome in outcomes:
        if not outcome.is_sound:
            _tell(outcome)
    moments = sum(outcome.moments for outcome in outcomes)
    result = Answer(
        method=f"{len(outcomes)} seeded schedules of {STRIKES} moments, {LANES} at a time: once callers write again, SIGKILL of "
        "the service, of PostgreSQL or of the S3 server (objects are files there), or of two; eight callers over HTTP; then what "
        "was acknowledged is held against rows, files and messages; faults are planted in what two schedules left"
    )
    counts: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.counts)
        struck.update(outcome.strikes)
    broken = Counter(breach[0] for outcome in outcomes for breach in outcome.breaches)
    planted = [found for outcome in outcomes for found in outcome.planted.values()]
    result.metrics = {
        "moments": moments,
        **{f"kills_of_{victim}": struck[victim] for victim in Victim},
        **{name: counts[name] for name in sorted(counts)},
        "schedule_longest_s": max(outcome.took_s for outcome in outcomes),
    }
    result.baselines = {"planted_faults": len(planted), "planted_faults_found": sum(planted)}
    result.ratios = {"sound_over_schedules": sum(outcome.is_sound for outcome in outcomes) / len(outcomes)}
    result.targets = [
        *(Target(promise, "==", 0.0, float(broken[promise])) for promise in Promise),
        Target("moments_not_come_back_from", "==", 0.0, float(sum(len(outcome.crashes) for outcome in outcomes))),
        Target("planted_faults_found", "==", float(max(1, len(planted))), float(sum(planted))),
    ]
    return result


def _played(seed: int, *, plants: bool) -> Outcome:
    """Play one schedule in a process of its own; one that does not end is a failure like any other."""
    command = [sys.executable, "-m", "benchmarks.support.store_stage", str(seed), *(["--plants"] if plants else [])]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S)
        return outcome_of(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        return Outcome(seed, crashes=[f"the schedule did not end: {error}"])


def _tell(outcome: Outcome) -> None:
    """Say what broke, and how to see it again."""
    lines = [f"schedule {outcome.seed}: {outcome.strikes}"]
    lines += [f"  {' '.join(breach)}" for breach in outcome.breaches[:10]]
    lines += [f"  {crash}" for crash in outcome.crashes]
    lines.append(f"  play it again: python -m benchmarks.support.store_stage {outcome.seed}")
    print("\n".join(lines), file=sys.stderr)
