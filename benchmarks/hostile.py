"""What do strangers achieve who send ten thousand hostile blueprints to a forge at which a training waits for kernels?

One sound design each, with one thing done to its document, text or bytes; among them operations that hang, crash, fill the
memory or lie, in real child processes. What the forge lets pass is looked at again by other code. Beside it, in waves: the
kernels that a training asks for at a higher priority, before, during and after the flood.
"""

import asyncio
import gc
import statistics
from collections.abc import Container, Mapping
from time import perf_counter

import torch
from sqlalchemy import func, select

from benchmarks.support.recheck import faults_of
from benchmarks.support.report import Answer, Target
from benchmarks.support.siege import GRACE_S, HARMFUL, IN_FLIGHT, STRANGERS, TRAINING, Siege, drawn, planted, siege
from benchmarks.tezzeret import designs
from esper.contracts.kernel import BuildSpec, JobPhase
from esper.errors import KernelRejected
from esper.services.urza.models import CompileJobRow, JobStatus
from esper.testing.faults import Fault

CHILDREN = 2
SENT, COPIES, WAVE = 10_000, 4, 40
QUICK_SENT, QUICK_WAVE = 300, 10
QUICK_FAULTS = (Fault.SEGFAULT, Fault.HANG, Fault.MEMORY, Fault.RAISE, Fault.WRONG)
DEADLINE_S, QUICK_DEADLINE_S = 5.0, 3.0
WAVES = 3
"""Waves before the flood, and again after it."""
PAUSE = 2.0
"""Between two waves the forge works for strangers alone, for so many times as long as a wave takes when it is quiet."""
SETTLE_LIMIT_S = 1800.0
MAX_SHOWN = 5


def answer(*, quick: bool, seed: int) -> Answer:
    """Send the flood, and count what it did."""
    torch.set_num_threads(1)
    deadline_s = QUICK_DEADLINE_S if quick else DEADLINE_S
    answer = Answer(
        method=f"one run; {IN_FLIGHT} submissions in flight at priority {STRANGERS}, {CHILDREN} child processes that fork "
        f"for each job, a deadline of "
        f"{deadline_s:g} s; rates of the training are jobs over time, summed over waves of "
        f"{QUICK_WAVE if quick else WAVE} at priority {TRAINING}, which begin while the forge works for strangers"
    )
    asyncio.run(_besieged(answer, quick=quick, seed=seed, deadline_s=deadline_s))
    return answer


async def _besieged(answer: Answer, *, quick: bool, seed: int, deadline_s: float) -> None:
    broken = planted(QUICK_FAULTS if quick else HARMFUL, 1 if quick else COPIES)
    sent = drawn((QUICK_SENT if quick else SENT) - len(broken), seed)
    wave, fresh = QUICK_WAVE if quick else WAVE, designs()
    # What strangers hold ready is not in the forge's memory, and its collector need not go through it.
    gc.collect()
    gc.freeze()
    async with siege(children=CHILDREN, deadline_s=deadline_s) as held:
        await held.wave(fresh, wave)
        quiet = [await held.wave(fresh, wave) for _ in range(WAVES)]
        began = perf_counter()
        flood = asyncio.create_task(held.flood(sent, broken))
        loud: list[float] = []
        while perf_counter() - began < SETTLE_LIMIT_S and (not flood.done() or await _open_jobs(held)):
            loud.append(await held.wave(fresh, wave))
            await asyncio.sleep(PAUSE * statistics.median(quiet))
        await flood
        answer.metrics["flood_s"] = perf_counter() - began
        quiet += [await held.wave(fresh, wave) for _ in range(WAVES)]
        left = await _open_jobs(held)
        crashes = float(held.ended_by_itself())
        passed = await _passed(held)
    gc.unfreeze()
    # Only now: it takes this process whole, and the forge would be blamed for answers that it cannot take.
    wrong = _wrong(passed, held.let_in, seed, {ir.digest for ir in broken})
    rates = {name: wave * len(times) / sum(times) for name, times in (("quiet", quiet), ("flooded", loud))}
    answer.metrics |= {
        "sent": len(sent) + len(broken),
        "planted": len(broken),
        "refused_at_the_door": held.answers["refused"],
        "told_to_come_again": held.answers["told to come again"],
        "let_in": held.answers["let in"],
        "passed_and_looked_at_again": len(passed),
        **{f"attempts_{status}": count for status, count in sorted(held.endings.items())},
        "longest_attempt_s": held.pool.longest_s,
        "longest_held_s": held.longest_held_s,
        "waves_flooded": len(loud),
        "wave_flooded_p50_s": statistics.median(loud),
        "wave_flooded_worst_s": max(loud),
        "jobs_per_s_flooded": rates["flooded"],
    }
    answer.baselines |= {"jobs_per_s_quiet": rates["quiet"], "wave_quiet_p50_s": statistics.median(quiet)}
    answer.ratios["flooded_over_quiet"] = rates["flooded"] / rates["quiet"]
    for sentence in [*held.unforeseen[:MAX_SHOWN], *wrong[:MAX_SHOWN]]:
        print(f"! {sentence}")
    answer.targets += [
        Target("unforeseen_errors", "==", 0.0, float(len(held.unforeseen))),
        Target("forge_crashes", "==", 0.0, crashes),
        Target("jobs_left", "==", 0.0, float(left)),
        Target("longest_attempt_s", "<=", deadline_s + GRACE_S, held.pool.longest_s),
        Target("passed_and_wrong", "==", 0.0, float(len(wrong))),
        Target("flooded_over_quiet", ">=", 0.7, answer.ratios["flooded_over_quiet"]),
    ]


async def _open_jobs(held: Siege) -> int:
    """Return how many builds wait or are at work; kernels are measured when there is nothing else to do."""
    row = CompileJobRow
    waiting = select(func.count()).where(
        row.status.in_((JobStatus.QUEUED, JobStatus.LEASED)), row.phase == JobPhase.BUILD
    )
    async with held.library.database.reading() as session:
        return int(await session.scalar(waiting) or 0)


async def _passed(held: Siege) -> dict[str, tuple[str, bytes]]:
    """Return the kernels that strangers got out of the forge, by blueprint: their content addresses and bytes."""
    passed: dict[str, tuple[str, bytes]] = {}
    for blueprint_id in held.let_in:
        try:
            kernel = await held.library.find(blueprint_id, BuildSpec())
        except KernelRejected:
            continue
        if kernel is not None:
            passed[blueprint_id] = kernel.kernel_id, await held.library.read(kernel.kernel_id)
    return passed


def _wrong(
    passed: Mapping[str, tuple[str, bytes]], kinds: Mapping[str, str], seed: int, harmful: Container[str]
) -> list[str]:
    """Look at kernels again that passed; return what is wrong with them."""
    wrong: list[str] = []
    for blueprint_id, (kernel_id, data) in passed.items():
        if blueprint_id in harmful:
            wrong.append(f"{kinds[blueprint_id]}: an operation that goes wrong passed")
            continue
        wrong += [
            f"{kinds[blueprint_id]} {kernel_id[:19]}: {fault}" for fault in faults_of(kernel_id, data, seed=seed)[:1]
        ]
    return wrong
