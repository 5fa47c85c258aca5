"""How a worker of the forge works, and whether it can work so here."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from esper.contracts.store_calls import MAX_LEASE_S
from esper.errors import ConfigError
from esper.runtime.supervision import ChildCommand, SupervisedChild
from esper.services.tezzeret.orders import MACHINE_CODE, Compiled
from esper.services.tezzeret.pool import Child, PoolConfig
from esper.services.tezzeret.scratch import no_compiler, no_scratch
from esper.services.tezzeret.screening import ForgeLimits


class WorkerConfig(BaseModel):
    """How a worker works.

    Attributes:
        urza_url: Address of the store; a queue that is handed over is used instead.
        urza_key: Key that the store knows this worker by.
        num_workers: Builds at a time, each in a child process of its own.
        spare_workers: Children on this machine that help out while builds take over a second, so that one that hangs holds up
            no other until its deadline.
        optimization_level: Highest level that is built; builds that ask for more get this one.
        backend: What level 3 makes inference forms with.
        scratch_mb: Size of one file in the folder that a child gets where it makes machine code.
        signing_key: File of the key that seals what levels add, as ``esper keys signing new`` makes it. Without one no form
            for inference is made, and the highest level is ``O1``.
        lease_s: How long a job is held without a sign of life; it is renewed three times as often.
        poll_s: How long to wait for an announcement before looking for jobs anyway.
        deadline_s: Time of one build.
        memory_limit_mb: Memory of one build, on top of what a child takes when it starts.
        extensions: Modules with custom operations that each child imports.
        jobs_per_child: Builds after which a child is replaced.
        fork_per_job: Whether each build gets a process of its own, for designs whose operations are not trusted.
        executor: Where children run: ``processes`` of this machine, or ``ray``, on the machines of a cluster.
        ray_address: The cluster, such as ``10.0.0.7:6379``; without one, a cluster of this machine alone.
        quiet_s: How long no build must have come until kernels are measured and finished; builds that come one after the other
            then do not wait for that, and what is timed has the core for itself.
        review_after_s: How long no build must have come until the most used kernels are proven again; None never does that.
        review_every_s: How long to wait where every one was looked at with this toolchain.
        idle_s: After how long without work a child is ended, to give its 240 MB back.
        outage_s: Pause after the store, the bus or a child was not available.
        close_limit_s: How long closing may take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    urza_url: str | None = None
    urza_key: SecretStr | None = None
    num_workers: int = Field(default=1, ge=1, le=256)
    spare_workers: int = Field(default=2, ge=0, le=256)
    optimization_level: str = Field(default="O2", pattern="^O[0-3]$")
    backend: Compiled = "onnx"
    scratch_mb: int = Field(default=256, ge=1)
    signing_key: Path | None = None
    lease_s: float = Field(default=30.0, gt=0, le=MAX_LEASE_S)
    poll_s: float = Field(default=1.0, gt=0)
    deadline_s: float = Field(default=60.0, gt=0)
    memory_limit_mb: int = Field(default=2048, ge=64)
    extensions: tuple[str, ...] = ()
    jobs_per_child: int = Field(default=500, ge=1)
    fork_per_job: bool = False
    executor: str = Field(default="processes", pattern="^(processes|ray)$")
    ray_address: str | None = None
    quiet_s: float = Field(default=0.5, ge=0)
    review_after_s: float | None = Field(default=None, ge=0)
    review_every_s: float = Field(default=600.0, gt=0)
    idle_s: float = Field(default=60.0, gt=0)
    outage_s: float = Field(default=1.0, gt=0)
    close_limit_s: float = Field(default=10.0, gt=0)

    @property
    def limits(self) -> ForgeLimits:
        """What one build may take."""
        return ForgeLimits(memory_limit_mb=self.memory_limit_mb, deadline_s=self.deadline_s)

    def children(self) -> PoolConfig:
        """Return how children are kept, having joined the cluster that they are to be on.

        Raises:
            ForgeUnavailable: If it cannot be joined.
        """
        return PoolConfig(
            num_children=self.num_workers,
            spare_children=self.spare_workers if self.executor == "processes" else 0,
            limits=self.limits,
            extensions=self.extensions,
            jobs_per_child=self.jobs_per_child,
            fork_per_job=self.fork_per_job,
            backend=self.backend,
            scratch_mb=self.scratch_mb if self.backend == MACHINE_CODE else 0,
            place=self._place(),
        )

    def _place(self) -> Callable[[ChildCommand], Child]:
        if self.executor == "processes":
            return SupervisedChild
        from esper.services.tezzeret.ray_child import placed_in

        return placed_in(self.ray_address, num_children=self.num_workers)

    def check(self) -> None:
        """See whether all that it needs is here.

        Raises:
            ConfigError: If an extension or the executor is not installed, or the backend cannot work here.
        """
        if self.backend == MACHINE_CODE and (why := self._no_machine_code()):
            raise ConfigError(
                "the forge cannot make machine code here", why=why, todo="choose another backend", code="ESP-2573"
            )
        if self.executor == "ray" and find_spec("ray") is None:
            why = "executor is 'ray', and ray is not installed"
            raise ConfigError("the forge has no executor", why=why, todo="pip install 'esper-morphogenesis[ray]'")
        for name in self.extensions:
            if not _is_installed(name):
                raise ConfigError(
                    f"extension {name!r} cannot be imported", why="no such module is installed", todo="check its name"
                )

    def _no_machine_code(self) -> str:
        """Return why there can be none, or nothing."""
        if self.executor != "processes":
            return "children on other machines get no folder to write in"
        return no_compiler() or no_scratch()


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
