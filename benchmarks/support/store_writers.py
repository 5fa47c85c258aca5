"""Callers of a store that write all the time, and note what they were told."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from random import Random

from benchmarks.support.store_history import Noted
from esper.contracts.adaptation import Outcome, Verdict
from esper.contracts.kernel import KernelStatus
from esper.errors import Conflict, IllegalTransition, NotFound, Unavailable
from esper.ir import digest_of
from esper.services.clients import UrzaClient
from esper.services.clients.messages import TransportConfig
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on

SUBMITTERS, FORGES, REPORTERS = 3, 4, 1
LIMITS = TransportConfig(
    deadline_s=6.0, try_s=2.0, tries=3, first_wait_s=0.05, longest_wait_s=0.3, failure_threshold=1_000_000,
    recovery_timeout_s=0.1, stall_s=2.0, transfer_s=6.0,
)  # fmt: skip
"""Callers give up soon, so that many calls have an end that nobody knows; the breaker would hide moments from them."""
_NAMES = ("gate", "mixer", "gate mixer")
"""Few, so that versions are contended for."""
_LEASE_S = 2.0
_PAUSE_S = 0.05
_LARGEST_BYTES = 400_000
"""Some are sent in pieces, most whole."""
_RETIRED = 0.1


class Writers:
    """A load on one store.

    Args:
        url: Where it is.
        seed: Draws what is written.
    """

    def __init__(self, url: str, seed: int) -> None:
        self.noted = Noted()
        self._url, self._dice = url, Random(seed)
        self._designs, self._decisions = count(), count()
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Write until `close` is called."""
        async with UrzaClient(self._url, config=LIMITS) as client, asyncio.TaskGroup() as tasks:
            for n in range(SUBMITTERS):
                tasks.create_task(self._repeat(client, self._submit, f"submitter-{n}"))
            for n in range(FORGES):
                tasks.create_task(self._repeat(client, self._forge, f"forge-{n}"))
            for n in range(REPORTERS):
                tasks.create_task(self._repeat(client, self._report, f"reporter-{n}"))

    def close(self) -> None:
        """End after the calls in hand."""
        self._closing.set()

    async def _repeat(self, client: UrzaClient, act: Callable[[UrzaClient, str], Awaitable[None]], name: str) -> None:
        while not self._closing.is_set():
            try:
                await act(client, name)
            except (
                Unavailable,
                Conflict,
                NotFound,
            ):  # a lease, or a grace, that ran out meanwhile is no fault of the store
                self.noted.refused += 1
                await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(self._dice.uniform(0, _PAUSE_S / 4))

    async def _submit(self, client: UrzaClient, _: str) -> None:
        """Submit a design that is new, or now and then one that was submitted before."""
        newest = next(self._designs)
        design = newest if self._dice.random() < 0.8 else self._dice.randrange(newest + 1)
        ir = adapter(1 + design % 100, 8 + design // 100)
        request = request_for(ir).model_copy(update={"name": self._dice.choice(_NAMES)})
        await client.submit(request)
        self.noted.blueprints.add(ir.digest)

    async def _forge(self, client: UrzaClient, name: str) -> None:
        job = await client.claim(name, lease_s=_LEASE_S)
        if job is None:
            return
        data = self._dice.randbytes(self._dice.randint(16, _LARGEST_BYTES))
        artifact = artifact_of(job.blueprint_id, data)
        self.noted.sizes[digest_of(data)] = len(data)
        await client.complete(job.job_id, name, artifact, verdict_on(artifact, throughput=self._dice.uniform(1, 1000)))
        self.noted.kernels[artifact.artifact_id] = job.job_id
        if self._dice.random() < _RETIRED:
            await self._retire(client, artifact.artifact_id)

    async def _retire(self, client: UrzaClient, kernel_id: str) -> None:
        self.noted.retired[kernel_id] = False
        try:
            await client.set_kernel_status(kernel_id, KernelStatus.RETIRED)
        except IllegalTransition:  # an earlier try of the same call was first
            return
        self.noted.retired[kernel_id] = True

    async def _report(self, client: UrzaClient, name: str) -> None:
        known = list(self.noted.kernels)
        if not known:
            return
        decision = f"{name}-{next(self._decisions)}"
        await client.report(
            Outcome(
                decision_id=decision, run_id="chaos", slot="fc", seed_idx=0, blueprint="gate",
                kernel_id=self._dice.choice(known), verdict=Verdict.KEPT, gain=0.1, gain_error=0.01, params=1, steps=1,
            )
        )  # fmt: skip
        self.noted.outcomes.add(decision)
