"""Kernels for every place that may grow: asked for at once, fetched when they are ready, never waited for unasked."""

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from esper.contracts.groups import run_group
from esper.contracts.kernel import BlueprintSubmissionRequest, BuildSpec
from esper.contracts.topics import COMPILATIONS
from esper.errors import EsperError, KernelRejected, NotFound, Unavailable
from esper.ir import BlueprintIR, BlueprintRegistry
from esper.kasmina import Place
from esper.ports import Delivery, Library, MessageBus
from esper.runtime.background import Bridge

_LATENCY = "latency_p50_ms"
POLL_S = 0.5
"""The bus wakes a waiting request at once; the store is asked again after this long all the same."""


@dataclass(frozen=True)
class Offer:
    """One blueprint at one place.

    Attributes:
        place: Where.
        ir: The design at that place.
        kind: What the design does there.
        params: Parameters that it adds.
        flops: Forward FLOPs that it adds per example.
    """

    place: Place
    ir: BlueprintIR
    kind: str
    params: int
    flops: int


@dataclass(frozen=True)
class ReadyKernel:
    """A validated kernel in memory.

    Attributes:
        latency_ms: What the forge measured; 0 where it was not measured yet, and nothing asks for it.
    """

    kernel_id: str
    blueprint: str
    data: bytes
    latency_ms: float


class KernelShelf:
    """What may be grafted, and how far the forge is with it.

    Args:
        bridge: Way to the background loop.
        library: Where blueprints go and kernels come from.
        bus: Tells when the forge has finished something.
        registry: Designs to choose from.
        run_id: Names the consumer group.
        measured: Whether a kernel is ready only once it was measured, as a budget of latency needs it.

    Attributes:
        offers: Every blueprint at every place that it fits.
        outages: How often the library did not answer; it is asked again.
    """

    def __init__(
        self,
        bridge: Bridge,
        library: Library,
        bus: MessageBus,
        registry: BlueprintRegistry,
        *,
        run_id: str,
        measured: bool = False,
    ) -> None:
        self.offers: list[Offer] = []
        self.outages = 0
        self._bridge, self._library, self._bus, self._registry = bridge, library, bus, registry
        self._run_id, self._measured = run_id, measured
        self._ready: dict[str, ReadyKernel] = {}
        self._refused: dict[str, EsperError] = {}
        self._pending: dict[str, Future[None]] = {}
        self._fetching: dict[str, Future[ReadyKernel]] = {}
        self._news = asyncio.Condition()
        self._listening: Future[None] | None = None

    def request(self, places: Iterable[Place]) -> None:
        """Ask the forge for every eligible blueprint at every place, once."""
        self._listening = self._bridge.submit(self._listen())
        for place in places:
            for name in self._registry.eligible(place.site()):
                self.add(place, name)

    def add(self, place: Place, name: str) -> Offer:
        """Offer one blueprint at one place, and ask the forge for it where nobody did."""
        ir = self._registry.build(name, place.site())
        price = place.price(ir)
        kind = self._registry.get(name).kind_at(place.site())
        offer = Offer(place, ir, kind.value, price.params, price.flops)
        self.offers.append(offer)
        if ir.digest not in self._pending:
            self._pending[ir.digest] = self._bridge.submit(self._obtain(ir))
        return offer

    def ready(self, offer: Offer) -> ReadyKernel | None:
        """Return the kernel of an offer, or None while there is none."""
        return self._ready.get(offer.ir.digest)

    def refusal(self, offer: Offer) -> str | None:
        """Return why the forge refused an offer, or None where it did not."""
        error = self._refused.get(offer.ir.digest)
        return None if error is None else str(error)

    def find(self, slot: str, blueprint: str) -> Offer:
        """Return the offer of a blueprint at a slot.

        Raises:
            NotFound: If it is not eligible there.
        """
        for offer in self.offers:
            if (offer.place.name, offer.ir.name) == (slot, blueprint):
                return offer
        there = sorted({offer.ir.name for offer in self.offers if offer.place.name == slot})
        slots = sorted({offer.place.name for offer in self.offers})
        raise NotFound(
            f"blueprint {blueprint!r} at slot {slot!r}",
            why=f"eligible there: {', '.join(there)}" if there else f"slots: {', '.join(slots)}",
            code="ESP-5010",
        )

    def by_id(self, kernel_id: str) -> ReadyKernel | None:
        """Return the kernel with that content address, or None while it is not here; then it is fetched.

        Raises:
            NotFound: If the library has none.
            KernelRejected: If it is not validated.
        """
        known = self.held(kernel_id)
        if known is not None:
            return known
        if kernel_id not in self._fetching:
            self._fetching[kernel_id] = self._bridge.submit(self._fetched(kernel_id))
        if not self._fetching[kernel_id].done():
            return None
        return self._fetching.pop(kernel_id).result()

    def wait_for(self, offer: Offer, *, limit_s: float) -> ReadyKernel:
        """Return the kernel of an offer, waiting for the forge where it is not done.

        Raises:
            KernelRejected: If the forge refused it.
            DeadlineExceeded: If it took longer than ``limit_s``.
        """
        self._bridge.wait(self._pending[offer.ir.digest], limit_s=limit_s)
        if (refused := self._refused.get(offer.ir.digest)) is not None:
            raise refused
        return self._ready[offer.ir.digest]

    def wait_for_id(self, kernel_id: str, *, limit_s: float) -> None:
        """Wait until `by_id` has an answer."""
        if self.held(kernel_id) is None and self.by_id(kernel_id) is None:
            self._bridge.wait(self._fetching[kernel_id], limit_s=limit_s)

    async def fetch(self, kernel_id: str) -> ReadyKernel:
        """Return any validated kernel of the library.

        Raises:
            NotFound: If there is none with that content address.
        """
        if (known := self.held(kernel_id)) is not None:
            return known
        return await asyncio.wrap_future(self._bridge.submit(self._fetched(kernel_id)))

    def settle(self, *, limit_s: float) -> None:
        """Wait until the forge has answered every request; only for ``late="wait"``."""
        for pending in self._pending.values():
            if not pending.done():
                self._bridge.wait(pending, limit_s=limit_s)

    def held(self, kernel_id: str) -> ReadyKernel | None:
        """Return the kernel with that content address, or None where it was not among those that were asked for."""
        return next((kernel for kernel in self._ready.values() if kernel.kernel_id == kernel_id), None)

    async def _fetched(self, kernel_id: str) -> ReadyKernel:
        return ReadyKernel(kernel_id, "", await self._library.read(kernel_id), 0.0)

    async def _listen(self) -> None:
        await self._bus.subscribe(COMPILATIONS.stream, run_group(self._run_id), self._heard)

    async def _heard(self, _: Delivery) -> None:
        async with self._news:
            self._news.notify_all()

    async def _obtain(self, ir: BlueprintIR) -> None:
        while ir.digest not in self._ready:
            try:
                self._ready[ir.digest] = await self._compiled(ir)
            except Unavailable:
                self.outages += 1
                await asyncio.sleep(POLL_S)
            except EsperError as error:
                self._refused[ir.digest] = error
                return
            except Exception as error:
                self._refused[ir.digest] = KernelRejected(
                    f"{ir.name} could not be had", why=f"{type(error).__name__}: {error}", todo="report this"
                )
                raise

    async def _compiled(self, ir: BlueprintIR) -> ReadyKernel:
        build = BuildSpec()
        await self._library.submit(
            BlueprintSubmissionRequest(
                name=ir.name, architecture_ir=ir.to_json(), submitted_by=self._run_id, build=build
            )
        )
        while (kernel := await self._library.find(ir.digest, build)) is None or (
            self._measured and _LATENCY not in kernel.validation_metrics
        ):
            await self._next_news()
        data = await self._library.read(kernel.kernel_id)
        return ReadyKernel(kernel.kernel_id, ir.name, data, kernel.validation_metrics.get(_LATENCY, 0.0))

    async def _next_news(self) -> None:
        async with self._news:
            try:
                await asyncio.wait_for(self._news.wait(), POLL_S)
            except TimeoutError:
                return
