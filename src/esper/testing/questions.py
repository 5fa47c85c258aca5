"""A dozen kernels, and questions about them; each with the plain filter that answers it."""

from collections.abc import Callable
from typing import TypeAlias

from esper.contracts.kernel import BlueprintContract, BlueprintStatus, GateResult, KernelStatus
from esper.contracts.store import BlueprintRecord, KernelRecord, Match
from esper.ir import digest_of
from esper.services.clients import UrzaClient
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from esper.testing.stocking import claimed

Store: TypeAlias = KernelManager | UrzaClient

NAMES = ("Gated Convolution", "gated-mixer", "Plain convolution")

KERNELS: list[tuple[dict[str, object], Callable[[KernelRecord], bool]]] = [
    ({}, lambda kernel: True),
    ({"tags": ["t0", "t2"]}, lambda kernel: bool({"t0", "t2"} & set(kernel.tags))),
    ({"tags": ["t0", "even"], "match": Match.ALL}, lambda kernel: {"t0", "even"} <= set(kernel.tags)),
    ({"status": KernelStatus.REJECTED}, lambda kernel: kernel.status is KernelStatus.REJECTED),
    ({"device": "cuda:0"}, lambda kernel: kernel.target_device == "cuda:0"),
    ({"min_performance": 5.0}, lambda kernel: kernel.throughput is not None and kernel.throughput >= 5.0),
    ({"max_latency_ms": 0.75}, lambda kernel: kernel.latency_ms is not None and kernel.latency_ms <= 0.75),
    ({"max_memory_mb": 0.5}, lambda kernel: kernel.size_bytes <= 2**19),
    ({"has_params": True}, lambda kernel: kernel.num_params is not None and kernel.num_params > 0),
    ({"has_params": False}, lambda kernel: kernel.num_params == 0),
    ({"name": "gat"}, lambda kernel: kernel.name.lower().startswith("gated")),
    ({"name": "CONV gated"}, lambda kernel: kernel.name == "Gated Convolution"),
    ({"blueprint_id": adapter(3).digest}, lambda kernel: kernel.blueprint_id == adapter(3).digest),
    (
        {"tags": ["even"], "status": KernelStatus.VALIDATED, "min_performance": 2.0},
        lambda kernel: "even" in kernel.tags and kernel.status is KernelStatus.VALIDATED and (kernel.throughput or 0) >= 2,
    ),
]  # fmt: skip
"""A question, and the plain filter that answers it."""

BLUEPRINTS: list[tuple[dict[str, object], Callable[[BlueprintRecord], bool]]] = [
    ({}, lambda blueprint: True),
    ({"tags": ["t1", "t2"]}, lambda blueprint: bool({"t1", "t2"} & set(blueprint.tags))),
    ({"tags": ["t2", "even"], "match": Match.ALL}, lambda blueprint: {"t2", "even"} <= set(blueprint.tags)),
    ({"status": BlueprintStatus.REJECTED}, lambda blueprint: blueprint.status is BlueprintStatus.REJECTED),
    ({"name": "convol"}, lambda blueprint: "onvolution" in blueprint.name),
    ({"name": "mix", "tags": ["t1"]}, lambda blueprint: blueprint.name == "gated-mixer" and "t1" in blueprint.tags),
]


async def catalogue(library: Store) -> list[KernelRecord]:
    """Store a dozen kernels that differ in all that can be asked for; return them in the order of every list."""
    for width in range(1, 13):
        await stored(
            library, width, name=NAMES[width % 3], tags=[f"t{width % 4}", *(["even"] if width % 2 == 0 else [])]
        )
        await library.submit(request_for(adapter(width)))
        job = await claimed(library, "w")
        size = 2**20 if width % 5 == 0 else 1_000
        artifact = artifact_of(job.blueprint_id, bytes([width]) * size)
        artifact = artifact.model_copy(update={"target_device": "cuda:0" if width % 3 == 0 else "cpu"})
        report = verdict_on(
            artifact, throughput=None if width == 7 else float(width), reasons=("off",) if width == 4 else ()
        )
        assert report.performance is not None
        speed = report.performance.model_copy(
            update={"metrics": report.performance.metrics | {"latency_p50_ms": width / 8}}
        )
        counted = GateResult(passed=True, metrics={"params": float(width % 2 * 100)})
        report = report.model_copy(update={"performance": speed, "safety": counted})
        await library.complete(job.job_id, "w", artifact, report)
    records = [await library.get_kernel(digest_of(bytes([n]) * (2**20 if n % 5 == 0 else 1_000))) for n in range(1, 13)]
    return sorted(
        records, key=lambda kernel: (kernel.throughput is None, -(kernel.throughput or 0.0), kernel.kernel_id)
    )


async def stored(
    library: Store,
    width: int,
    *,
    name: str = "line",
    tags: list[str] | None = None,
    parent_id: str | None = None,
) -> str:
    """Store a design without asking for its build; return its address."""
    ir = adapter(width)
    contract = BlueprintContract(
        blueprint_id=ir.digest, name=name, architecture_ir=ir.to_json(), tags=tags or [], metadata={"of": "the suite"}
    )
    return await library.store_blueprint(contract, parent_id)
