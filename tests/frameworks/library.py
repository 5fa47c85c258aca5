"""A library that has every kernel a model can use, without a forge."""

import asyncio
from pathlib import Path

from esper.blueprints import initial_state, pack_kernel
from esper.ir import REGISTRY, BlueprintIR
from esper.kasmina import Plan
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import artifact_of, request_for, verdict_on


def stock(root: Path, *plans: Plan) -> Path:
    """Fill the library below a root with what some plans could graft, and return the root."""
    asyncio.run(_stock(root, plans))
    return root


async def _stock(root: Path, plans: tuple[Plan, ...]) -> None:
    async with await KernelManager.open(root / "library") as library:
        for found in plans:
            sites = {place.name: place.site() for place in found.places}
            for graft in found.grafts:
                await library.submit(request_for(REGISTRY.build(graft.blueprint, sites[graft.slot])))
        while (job := await library.claim("stock", lease_s=60)) is not None:
            ir = BlueprintIR.from_json(job.architecture_ir)
            seed, dtype = job.build.weight_seed, job.build.dtype
            data = pack_kernel(ir, initial_state(ir, seed=seed, dtype=dtype), seed=seed)
            artifact = artifact_of(job.blueprint_id, data)
            await library.complete(job.job_id, "stock", artifact, verdict_on(artifact))
