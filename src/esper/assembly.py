"""The composition root: wires the parts of one process, and is the only place that knows them all."""

import asyncio
import os
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from esper.errors import ConfigError, DeadlineExceeded
from esper.ports import Advisor, Library, MessageBus
from esper.runtime.background import BackgroundLoop, Bridge, close_at_exit

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim import Optimizer

    from esper.services.oona.desk import Desk
    from esper.services.oona.redis_bus import RedisBus
    from esper.services.tolaria.budget import Budget
    from esper.services.tolaria.config import GovernorConfig
    from esper.services.tolaria.consultation import Decides
    from esper.services.tolaria.control import Control
    from esper.services.tolaria.growth import Growth
    from esper.services.tolaria.held_out import Validate
    from esper.services.tolaria.newborn_rate import NewbornRate
    from esper.services.tolaria.platform import Platform
    from esper.services.tolaria.schedules import Schedule
    from esper.services.tolaria.snapshot import Stateful
    from esper.telemetry.metrics import Metrics

START_LIMIT_S = 60.0
"""A library is opened within milliseconds; a locked one is waited for as long as its own limits say, and no longer."""

DRAIN_LIMIT_S = 1.0
"""Readers take milliseconds for what was sent last; who does not is not waited for."""

STOP_LIMIT_S = 10.0
"""The forge ends its children within less; what is not done by then is cancelled."""

CONTROLLERS = ("plateau",)
"""Controllers that go by name."""


@dataclass(frozen=True)
class Embedded:
    """One process's services, running.

    Attributes:
        bus: In-process messages.
        library: The artifact store in a local folder or elsewhere, with what was read last in memory.
        advisor: The controller.
        counts: Returns what was counted from the messages so far, also after the end.
        metrics: The same for Prometheus, and what the buses are measured by.
        shared: The bus that other processes are on, too, or None.
    """

    bus: MessageBus
    library: Library
    advisor: Advisor
    counts: Callable[[], dict[str, dict[str, int]]]
    metrics: "Metrics"
    shared: MessageBus | None = None


@asynccontextmanager
async def embedded(
    root: str | os.PathLike[str],
    advisor: Advisor,
    *,
    forge_workers: int = 1,
    extensions: Sequence[str] = (),
    store: str | None = None,
    shared: "RedisBus | None" = None,
    run_id: str | None = None,
) -> AsyncIterator[Embedded]:
    """Run bus, store, forge, analyzer and counters in this event loop until the block ends.

    Decisions and outcomes go through a journal below ``root``: what a process that was killed left there is read on by the
    next one.

    Args:
        root: Folder for everything that is written; its library is shared by all runs below it.
        advisor: The controller.
        forge_workers: Child processes that compile; for a store elsewhere its settings say how many.
        extensions: Modules with custom ops that the children import.
        store: Address of an artifact store in place of the library in ``root``.
        shared: A bus that other processes are on: it is opened, told what is said here, and closed.
        run_id: The run whose messages are counted, where it is not every one.

    Raises:
        ConfigError: If the folder cannot be written.
        StoreUnavailable: If the library in it cannot be opened, or the store elsewhere does not answer at the beginning.
        Rejected: If the store elsewhere wants another key.
        BusUnavailable: If the shared bus does not answer at the beginning.
    """
    from esper.services.clients.reporting import Reporter
    from esper.services.nissa.counters import RunCounters
    from esper.services.oona.journal import Journal
    from esper.services.oona.memory_bus import MemoryBus
    from esper.services.oona.uplink import Uplink
    from esper.services.oona.watch import FiguresWatch
    from esper.services.tamiyo.analyzer_service import AnalyzerService
    from esper.services.tezzeret.worker import TezzeretWorker, WorkerConfig
    from esper.services.urza.outbox import OutboxRelay
    from esper.storage import storage_at, storage_in
    from esper.telemetry.bus_metrics import BusCollector

    # Who reads on is in the journal too: one with an uplink would wait for it in a process that has none, and what waits for a
    # store elsewhere is not for the library in the folder.
    name = ("alone" if shared is None else "shared") + ("" if store is None else "-store")
    async with (
        storage_in(Path(root), forge_workers) if store is None else storage_at(store, Path(root)) as kept,
        shared or nullcontext(),
        MemoryBus(journal=Journal.first_free(Path(root) / "bus", name)) as bus,
        nullcontext() if shared is None else FiguresWatch(_desk_of(shared), shared) as watch,
    ):
        # Designs are the user's own here, and a further child would take a core from training.
        work = WorkerConfig(num_workers=max(1, kept.forge_workers), spare_workers=0, extensions=tuple(extensions))
        forges = [TezzeretWorker(work, queue=kept.queue, bus=bus)] if kept.forge_workers else []
        relays = [] if kept.outbox is None else [OutboxRelay(kept.outbox, bus)]
        lines = [] if kept.line is None else [kept.line]
        counters = RunCounters(bus, run_id=run_id)
        counters.metrics.registry.register(BusCollector({"local": bus} | ({} if watch is None else {"shared": watch})))
        async with asyncio.TaskGroup() as tasks:
            uplinks = () if shared is None else (Uplink(bus, shared),)
            for part in (
                *forges,
                *lines,
                *relays,
                counters,
                AnalyzerService(bus),
                Reporter(bus, kept.library),
                *uplinks,
            ):
                tasks.create_task(part.run())
            try:
                yield Embedded(bus, kept.library, advisor, counters.snapshot, counters.metrics, shared)
            finally:
                for forge in forges:
                    await forge.close()
                for line in lines:
                    await line.close()
                for relay in relays:
                    await relay.close()
                await bus.drain(limit_s=DRAIN_LIMIT_S)
                await bus.close()


def _desk_of(bus: "RedisBus") -> "Desk":
    from esper.services.oona.redis_desk import RedisDesk

    return RedisDesk(bus.config)


def attach(
    model: "nn.Module",
    optimizer: "Optimizer",
    *,
    validate: "Validate",
    every: int,
    steps: int | None = None,
    scheduler: "Schedule | Sequence[Schedule] | None" = None,
    state: "Sequence[Stateful]" = (),
    budget: "str | Budget",
    controller: "str | Decides" = "plateau",
    lead: int = 1,
    late: str = "slip",
    on_cull: str = "restore",
    control: "str | Control | None" = None,
    probe: "Callable[[nn.Module], Tensor] | None" = None,
    signal: str = "bottleneck",
    incubate: int = 0,
    newborn_rate: "NewbornRate | None" = None,
    governor: "bool | GovernorConfig" = True,
    ddp: "DistributedDataParallel | None" = None,
    bus: str | None = None,
    store: str | None = None,
    root: str | os.PathLike[str] = "./esper-runs",
) -> "Growth":
    """Let a wrapped model grow while the caller trains it.

    Args:
        model: Wrapped by ``esper.wrap``; or what ``torch.compile`` made of it; or the DistributedDataParallel around it,
            and then every rank calls this.
        optimizer: The one that trains it; newborn parameters join it in a group of their own.
        validate: Returns a 1-D tensor of losses for a model, one per held-out example or batch; never of the test split.
            It is called in eval mode and without gradient, and leaves no trace.
        every: Optimizer steps from one boundary to the next; decisions are taken and grafts join at boundaries.
        steps: Planned length of the run in optimizer steps. Without it only a confirmed plateau leads to growth.
        scheduler: Follows growth; it is stepped by the caller alone. Several of one optimizer are given as a tuple.
        state: Whatever else moves with the training and has ``state_dict``: a scaler, a loader, a second optimizer; an
            ``AveragedModel`` grows with the model.
        budget: ``"+30%"`` of the host's parameters at most, ``"x4"`` the host at most, or an ``esper.Budget``.
        controller: ``"plateau"``, or an object with ``decide(packet)``, plain or async.
        lead: Boundaries from a decision to its joining.
        late: ``"slip"`` joins a late kernel at a later boundary and says so; ``"wait"`` blocks for it, counted apart.
        on_cull: ``"restore"`` puts the state before the join back; ``"continue"`` trains on without the seed.
        control: None. A twin needs the batches, which a trainer has; ``esper.Trainer`` gives its own here.
        probe: Returns the training loss of one batch for a model. The signal is then measured on it, at boundaries,
            and its operations are counted; otherwise it is measured on the caller's own step before a boundary.
        signal: Measurement by which slots are scored: ``bottleneck``, ``tiny_residual``, ``effective_rank``,
            ``gradient_norm`` or ``gradient_snr``.
        incubate: Optimizer steps that a kernel which the controller chose learns apart before it joins; 0 joins it at once.
        newborn_rate: Warm-up and a decaying boost of a newborn's learning rate; without it, its host's rate.
        governor: Whether a graft is taken back at once when values are not finite or the training loss lies lasting higher
            than before it; a ``GovernorConfig`` sets how that is judged. Without a graft it touches nothing.
        ddp: The DistributedDataParallel around something of which the model is a part; where it is around the model itself,
            give it as the model.
        bus: Address of a Redis that other processes are on, such as ``redis://localhost:6379``: they see there what happens,
            and may decide for this run. Without it everything stays in this process.
        store: Address of an artifact store that other processes use, such as ``http://localhost:8000``: blueprints, kernels
            and outcomes are kept there. How it is reached, and who builds, is in ``[store]`` of the settings. Without it
            they are kept in ``<root>/library``.
        root: Folder for everything that is written: ``<root>/<run>`` and ``<root>/library``.

    Returns:
        What to call once per optimizer step: ``for event in growth.step(loss): ...``.

    Raises:
        ConfigError: If an argument cannot be used; it says why, and what to do.
        StoreUnavailable: If the library below ``root`` cannot be opened, or ``store`` does not answer.
        Rejected: If ``store`` wants another key.
        BusUnavailable: If ``bus`` does not answer.
    """
    from esper.kasmina.compiling import opened
    from esper.kasmina.quiet import preserved_rng
    from esper.kasmina.signals.named import check_signal
    from esper.services.tolaria import attachment
    from esper.services.tolaria.distributed.formation import check_apart, check_sharing, formation_of
    from esper.services.tolaria.schedules import as_one
    from esper.services.tolaria.snapshot import Subject

    config = attachment.read_config(
        every=every,
        steps=steps,
        lead=lead,
        late=late,
        on_cull=on_cull,
        control=control,
        probe=probe,
        signal=signal,
        incubate=incubate,
        newborn_rate=newborn_rate,
        governor=governor,
    )
    formation = formation_of(opened(model), ddp)
    trained = model if formation.model is opened(model) else formation.model
    model, team = opened(trained), formation.team
    check_apart(team, incubate)
    check_sharing(team, optimizer, probe)
    attachment.check_host(model, optimizer)
    schedule = as_one(scheduler)
    attachment.check_parts(optimizer, validate, schedule)
    check_signal(signal, optimizer, probed=probe is not None)
    limits = attachment.read_budget(budget, model)
    others, followers = attachment.read_state(state, model, optimizer)
    advisor = advisor_named(controller)
    subject = Subject(model, optimizer, schedule, others, (*formation.followers(), *followers), team)
    attachment.clear_dead_grafts(subject)
    folder = attachment.new_run(root, team)
    with preserved_rng():  # what the services import may draw, as rich does
        platform = attachment.start_platform(
            team, lambda: start(root, advisor, bus=bus, store=store, run_id=folder.run_id)
        )
    try:
        growth = attachment.start_growth(
            subject, platform, folder, validate=validate, budget=limits, config=config, probe=probe,
            control=control if not isinstance(control, str) else None, whole=None if trained is model else trained,
        )  # fmt: skip
    except BaseException:
        platform.close()
        raise
    weakref.finalize(growth, platform.let_go).atexit = False
    return growth


def advisor_named(controller: "str | Decides") -> Advisor:
    """Return the controller of that name, or the user's own object as one.

    Raises:
        ConfigError: If there is none of that name, or the object does not decide.
    """
    from esper.services.tolaria.consultation import OwnAdvisor

    if not isinstance(controller, str):
        return OwnAdvisor(controller)
    if controller in CONTROLLERS:
        from esper.services.tamiyo.plateau import PlateauAdvisor

        return PlateauAdvisor()
    near = get_close_matches(controller, CONTROLLERS, n=1)
    raise ConfigError(
        f"controller {controller!r} is not known",
        todo=f'did you mean "{near[0]}"?' if near else 'use "plateau", or an object with decide(packet)',
        code="ESP-2131",
    )


def start(
    root: str | os.PathLike[str],
    advisor: Advisor,
    *,
    extensions: Sequence[str] = (),
    bus: str | None = None,
    store: str | None = None,
    run_id: str = "",
) -> "Platform":
    """Start the embedded services in a background thread of their own, and wait until they answer.

    Args:
        root: Folder for everything that is written.
        advisor: The controller.
        extensions: Modules with custom ops that the forge's children import.
        bus: Address of a Redis that other processes are on, or None.
        store: Address of an artifact store that other processes use, or None.
        run_id: The run: it hears decisions there, and its messages are counted.

    Raises:
        ConfigError: If the folder cannot be written.
        StoreUnavailable: If the library in it cannot be opened, or ``store`` does not answer.
        Rejected: If ``store`` wants another key.
        BusUnavailable: If ``bus`` does not answer.
    """
    from esper.services.tolaria.platform import Platform

    loop = BackgroundLoop()
    started: Future[Embedded] = Future()
    ending = asyncio.Event()

    async def serve() -> None:
        try:
            shared = None if bus is None else _shared(bus, run_id)
            async with embedded(
                root, advisor, extensions=extensions, store=store, shared=shared, run_id=run_id or None
            ) as services:
                started.set_result(services)
                await ending.wait()
                await loop.end_others()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    running = loop.submit(serve())
    try:
        services = started.result(START_LIMIT_S)
    except TimeoutError as error:
        loop.close()
        raise DeadlineExceeded("the services did not start", why=f"no answer in {START_LIMIT_S:g} s") from error
    except BaseException:
        loop.close()
        raise

    def close() -> None:
        if not loop.alive:
            return
        loop.call(ending.set)
        if loop.is_current:
            running.add_done_callback(lambda _: loop.close())
            return
        wait([running], STOP_LIMIT_S)
        loop.close()

    def let_go() -> None:
        if loop.alive:
            running.add_done_callback(lambda _: loop.close(limit_s=0.0))
            loop.call(ending.set)

    close_at_exit(running, close)
    return Platform(
        bridge=Bridge(loop), library=services.library, bus=services.bus, advisor=services.advisor,
        counts=services.counts, running=running, close=close, let_go=let_go, shared=services.shared,
    )  # fmt: skip


def _shared(url: str, run_id: str) -> "RedisBus":
    """Return the bus that a run shares with other processes, not opened yet; the run's group there ends with it."""
    from esper.contracts.groups import run_group
    from esper.contracts.topics import DECISIONS
    from esper.services.oona.extra import check_redis

    check_redis()
    from esper.services.oona.redis_bus import RedisBus
    from esper.services.oona.redis_config import RedisBusConfig
    from esper.settings import load

    shared = RedisBus(load(RedisBusConfig, "oona").model_copy(update={"url": url}))
    shared.end_with_it(DECISIONS.stream, run_group(run_id))
    return shared


__all__ = ["CONTROLLERS", "Embedded", "advisor_named", "attach", "embedded", "start"]
