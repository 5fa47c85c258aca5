"""What does a proven kernel cost, how many come out of a core, and does a compiled form run faster than the eager kernel?

Distinct designs go through the whole forge: store, announcement, child process, validation, store. No design is asked for twice,
so no cache and no single flight answers. Beside it, in this process: the parts of a build one by one, and each form run in
turns with the eager kernel.
"""

import asyncio
import itertools
import os
import statistics
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.support.report import Answer, Target
from esper.assembly import Embedded, advisor_named, embedded
from esper.blueprints import catalog as catalog
from esper.blueprints import unpack_kernel
from esper.contracts.events import CompilationEvent
from esper.contracts.kernel import BuildSpec
from esper.contracts.topics import COMPILATIONS
from esper.errors import CompilationError
from esper.ir import REGISTRY, BlueprintIR, Site
from esper.ports import Delivery
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.gates.config import ValidatorConfig
from esper.services.tezzeret.gates.trial import Trial
from esper.services.tezzeret.inference.backends import BACKENDS
from esper.services.tezzeret.inference.certificate import certify
from esper.services.tezzeret.inference.forms import inference_form
from esper.services.tezzeret.validator import KernelValidator
from esper.testing.forging import request_for

CHANNELS = 32
CORES = 2
BURST = 100
JOBS = {"O0": 200, "O1": 40}
"""Builds from which a rate is taken."""
UNLOADED = {"O0": 40, "O1": 12}
"""Builds one at a time, from which a median is taken."""
RATE_BARS = {"O0": 25.0, "O1": 6.0}
UNLOADED_BARS_MS = {"O0": 150.0, "O1": 400.0}
BURST_BARS_S = {"O0": 3.0, "O1": 12.0}


def designs() -> Iterator[BlueprintIR]:
    """Yield distinct designs of the catalogue: every blueprint and layout, at one width after the other."""
    for channels in itertools.count(8, 2):
        for name in REGISTRY.names():
            for layout in sorted(REGISTRY.get(name).layouts):
                yield REGISTRY.build(name, Site(layout, channels, entering=channels))


@dataclass
class Forge:
    """The whole forge, fed with designs that it has not seen.

    Attributes:
        services: Bus, store and forge.
        fresh: Designs.
    """

    services: Embedded
    fresh: Iterator[BlueprintIR]
    finished: int = 0
    """Kernels that were measured, in the job that follows each build."""
    _ended: dict[str, "asyncio.Future[CompilationEvent]"] = field(default_factory=dict)

    async def listen(self) -> None:
        """Note how builds end."""
        await self.services.bus.subscribe(COMPILATIONS.stream, "benchmark", self._heard)

    async def _heard(self, delivery: Delivery) -> None:
        event = delivery.body
        if isinstance(event, CompilationEvent) and event.status == "finished":
            self.finished += 1
        elif isinstance(event, CompilationEvent) and event.status not in ("queued", "started"):
            waiting = self._ended.pop(event.blueprint_id, None)
            if waiting is not None:
                waiting.set_result(event)

    async def forge(self, level: str) -> float:
        """Have one design built; return the seconds from asking to the stored, announced kernel.

        Raises:
            CompilationError: If the forge did not compile it: then no figure means anything.
        """
        return await self._forged(next(self.fresh), level)

    async def _forged(self, ir: BlueprintIR, level: str) -> float:
        ended = self._ended[ir.digest] = asyncio.get_running_loop().create_future()
        began = perf_counter()
        await self.services.library.submit(request_for(ir, build=BuildSpec(level=level)))
        event = await ended
        if event.status != "compiled":
            raise CompilationError(f"blueprint {ir.name!r} ended as {event.status}", why=event.reason)
        return perf_counter() - began

    async def many(self, level: str, count: int) -> float:
        """Have many designs built at once; return the seconds until the last one is there."""
        drawn = list(itertools.islice(self.fresh, count))
        began = perf_counter()
        await asyncio.gather(*(self._forged(ir, level) for ir in drawn))
        return perf_counter() - began

    async def measured_per_s(self, count: int) -> float:
        """Wait until so many kernels more are measured; return their rate, the quiet before the first of them included."""
        began, before = perf_counter(), self.finished
        while self.finished < before + count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return count / (perf_counter() - began)


@asynccontextmanager
async def forge(fresh: Iterator[BlueprintIR], *, workers: int) -> AsyncIterator[Forge]:
    """Run a forge in a folder of its own, its children started and each warmed up at both levels."""
    with tempfile.TemporaryDirectory() as root:
        async with embedded(Path(root), advisor_named("plateau"), forge_workers=workers) as services:
            made = Forge(services, fresh)
            listening = asyncio.create_task(made.listen())
            await asyncio.sleep(0)
            for level in ("O0", "O1"):
                await made.many(level, 2 * workers)
            yield made
        await listening


def answer(*, quick: bool, seed: int) -> Answer:
    """Measure the parts, the whole forge, and the forms."""
    torch.set_num_threads(1)
    answer = Answer(
        method="wall time of distinct designs of the catalogue; medians, except rates (jobs over time) and bursts (once); "
        "one thread per process; kernels are measured in a job of their own when no build is at work, which is a rate of its own"
    )
    _parts(answer, quick)
    asyncio.run(_whole(answer, quick))
    return answer


def _parts(answer: Answer, quick: bool) -> None:
    """Time each part of a build, and run each form beside the eager kernel."""
    shown = [(name, layout) for name in REGISTRY.names() for layout in sorted(REGISTRY.get(name).layouts)]
    faster: list[bool] = []
    for name, layout in shown[:1] if quick else shown:
        site = f"{name}_{layout}"
        ir = REGISTRY.build(name, Site(layout, CHANNELS, entering=CHANNELS))
        compiler, validator = KernelCompiler(), KernelValidator()
        for turn in ("cold", "warm"):
            began = perf_counter()
            artifact = compiler.trainable(ir, BuildSpec())
            made = perf_counter()
            validator.validate(artifact, ir)
            ended = perf_counter()
            trial = Trial(unpack_kernel(artifact.kernel_binary), ValidatorConfig())
            answer.metrics[f"{site}_compile_{turn}_ms"] = (made - began) * 1e3
            answer.metrics[f"{site}_validate_{turn}_ms"] = (ended - made) * 1e3
            answer.metrics[f"{site}_certificate_{turn}_ms"] = certify(trial).took_ms
        answer.metrics[f"{site}_bytes"] = len(artifact.kernel_binary)
        faster.append(_forms(answer, site, trial, quick))
    answer.ratios["onnx_faster_than_eager_share"] = sum(faster) / len(faster)
    answer.targets.append(
        Target("onnx_faster_than_eager_share", ">", 0.5, answer.ratios["onnx_faster_than_eager_share"])
    )


def _forms(answer: Answer, site: str, trial: Trial, quick: bool) -> bool:
    """Note the figures of every backend; say whether the one of level 3 beats the eager kernel."""
    beaten = False
    for name, backend in BACKENDS.items():
        if backend.missing(trial) or (quick and name == "aotinductor"):
            continue
        form = inference_form(trial, backend).form
        answer.metrics[f"{site}_{name}_made_ms"] = form.made_ms
        answer.metrics[f"{site}_{name}_load_ms"] = form.load_ms
        answer.metrics[f"{site}_{name}_bytes"] = form.size_bytes
        answer.ratios[f"{site}_{name}_over_eager_latency"] = form.latency_p50_ms / form.eager_p50_ms
        answer.baselines[f"{site}_{name}_eager_ms"] = form.eager_p50_ms
        beaten = beaten or (name == "onnx" and form.latency_p50_ms < form.eager_p50_ms)
    return beaten


async def _whole(answer: Answer, quick: bool) -> None:
    """Measure rates on one and two cores, waiting alone, and a burst."""
    fresh = designs()
    rates: dict[tuple[str, int], float] = {}
    for workers in (1, CORES):
        async with forge(fresh, workers=workers) as made:
            for level, count in JOBS.items():
                jobs = count // 10 if quick else count * workers
                rates[level, workers] = jobs / await made.many(level, jobs)
                answer.metrics[f"{level}_jobs_per_s_on_{workers}"] = rates[level, workers]
            if workers == 1:
                answer.metrics["measured_per_s_on_1"] = await made.measured_per_s(5 if quick else 100)
                await _alone(answer, made, quick)
            else:
                await _burst(answer, made, quick)
                answer.metrics["child_peak_rss_mb"] = max(map(_peak_mb, _children()))
    for level, bar in RATE_BARS.items():
        answer.targets += [
            Target(f"{level}_jobs_per_s_on_{workers}", ">=", bar * workers, rates[level, workers])
            for workers in (1, CORES)
        ]
        answer.ratios[f"{level}_two_cores_over_one"] = rates[level, CORES] / rates[level, 1]
    answer.targets.append(Target("child_peak_rss_mb", "<=", 500.0, answer.metrics["child_peak_rss_mb"]))


async def _alone(answer: Answer, made: Forge, quick: bool) -> None:
    for level, count in UNLOADED.items():
        taken = [await made.forge(level) for _ in range(count // 4 if quick else count)]
        answer.metrics[f"{level}_unloaded_p50_ms"] = statistics.median(taken) * 1e3
        answer.targets.append(
            Target(
                f"{level}_unloaded_p50_ms", "<=", UNLOADED_BARS_MS[level], answer.metrics[f"{level}_unloaded_p50_ms"]
            )
        )


async def _burst(answer: Answer, made: Forge, quick: bool) -> None:
    for level, bar in BURST_BARS_S.items():
        answer.metrics[f"{level}_burst_s"] = await made.many(level, BURST // 10 if quick else BURST)
        answer.targets.append(Target(f"{level}_burst_s", "<=", bar, answer.metrics[f"{level}_burst_s"]))


def _children() -> list[int]:
    """Return the process ids of this process's children."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return [int(pid) for pid in text.split()]


def _peak_mb(pid: int) -> float:
    """Return the largest resident size that a process had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
