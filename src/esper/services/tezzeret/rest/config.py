"""Settings of the forge as a service."""

from pathlib import Path

from pydantic import Field, SecretStr

from esper.services.rest.config import RestConfig
from esper.services.tezzeret.identity import KEY_FILE
from esper.services.tezzeret.orders import Compiled
from esper.services.tezzeret.worker import WorkerConfig


class TezzeretConfig(RestConfig):
    """What every service has, and how this one forges.

    Attributes:
        port: Port that it listens on.
        token: Key that callers send; beyond loopback there must be one.
        urza_url: Address of the store.
        urza_key: Key that the store knows this forge by.
        bus_url: ``redis://…`` where blueprints are announced; without one the forge polls.
        root: Folder of its signing key, made at the first start, and of the keys that it trusts.
        num_workers: Builds at a time, each in a child process of its own.
        optimization_level: Highest level that is built.
        backend: What level 3 makes inference forms with.
        scratch_mb: Size of one file in the folder where a child makes or runs machine code.
        extensions: Modules with custom operations that each child imports.
        fork_per_job: Whether each build gets a process of its own.
        memory_limit_mb: Memory of one build, on top of what a child takes when it starts.
        deadline_s: Time of one build.
        execution_limit_s: Time of one run of a kernel.
        executor: Where children run: ``processes`` of this machine, or ``ray``.
        ray_address: The Ray cluster; without one, a cluster of this machine alone.
        review_after_s: How long no build must have come until the most used kernels are proven again; null never does that.
        lease_s: How long a job is held without a sign of life.
        poll_s: How long to wait for an announcement before looking for jobs anyway.
        job_limit_s: How long jobs in hand may take when it stops; then they go back to the queue.
    """

    port: int = Field(default=8002, ge=0, le=65535)
    token: SecretStr | None = Field(default=None, min_length=16)
    urza_url: str = "http://127.0.0.1:8000"
    urza_key: SecretStr | None = None
    bus_url: SecretStr | None = None
    root: Path = Path("./esper-forge")
    num_workers: int = Field(default=1, ge=1, le=256)
    optimization_level: str = Field(default="O3", pattern="^O[0-3]$")
    backend: Compiled = "onnx"
    scratch_mb: int = Field(default=256, ge=1)
    extensions: tuple[str, ...] = ()
    fork_per_job: bool = False
    memory_limit_mb: int = Field(default=2048, ge=64)
    deadline_s: float = Field(default=60.0, gt=0)
    execution_limit_s: float = Field(default=20.0, gt=0)
    executor: str = Field(default="processes", pattern="^(processes|ray)$")
    ray_address: str | None = None
    review_after_s: float | None = Field(default=60.0, ge=0)
    lease_s: float = Field(default=30.0, gt=0, le=3600)
    poll_s: float = Field(default=1.0, gt=0)
    job_limit_s: float = Field(default=20.0, ge=0)

    @property
    def worker(self) -> WorkerConfig:
        """The worker's part of it."""
        return WorkerConfig(
            urza_url=self.urza_url,
            num_workers=self.num_workers,
            optimization_level=self.optimization_level,
            backend=self.backend,
            scratch_mb=self.scratch_mb,
            signing_key=self.root / KEY_FILE,
            executor=self.executor,
            ray_address=self.ray_address,
            review_after_s=self.review_after_s,
            lease_s=self.lease_s,
            poll_s=self.poll_s,
            deadline_s=self.deadline_s,
            memory_limit_mb=self.memory_limit_mb,
            extensions=self.extensions,
            fork_per_job=self.fork_per_job,
        )
