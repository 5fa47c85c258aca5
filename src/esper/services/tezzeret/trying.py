"""One build in a child of this machine, with no store."""

from esper.contracts.ids import new_id
from esper.contracts.kernel import BuildSpec, CompiledKernelArtifact, CompileJob, JobPhase, ValidationResult
from esper.ir import BlueprintIR
from esper.services.tezzeret.orders import order_of
from esper.services.tezzeret.pool import ForgePool, PoolConfig
from esper.services.tezzeret.screening import screen


async def tried(ir: BlueprintIR, config: PoolConfig | None = None) -> tuple[CompiledKernelArtifact, ValidationResult]:
    """Compile, validate and measure a blueprint.

    Args:
        ir: The blueprint.
        config: How the child is kept.

    Raises:
        InvalidBlueprint: If it is no graft that is neutral and alive.
        CompilationError: If it is too large, or the child refused it.
        ChildDied: If it killed the child.
        DeadlineExceeded: If it took too long.
    """
    config = config or PoolConfig()
    job = CompileJob(
        job_id=new_id("job"), blueprint_id=ir.digest, name=ir.name, architecture_ir=ir.to_json(), build=BuildSpec(),
        priority=5, attempt=1,
    )  # fmt: skip
    screen(ir.to_json(), config.limits)
    pool = ForgePool(config)
    try:
        artifact, report = await pool.forge(order_of(job, job.build.level))
        if not report.passed:
            return artifact, report
        finish = job.model_copy(update={"phase": JobPhase.FINISH, "kernel_id": artifact.artifact_id})
        added = await pool.finish(order_of(finish, job.build.level))
        return artifact, report.model_copy(update={"performance": added.performance})
    finally:
        await pool.close()
