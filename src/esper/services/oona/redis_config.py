"""Settings of the bus on Redis."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class RedisBusConfig(BaseModel):
    """Where Redis is, and the limits of this process on it.

    Attributes:
        url: ``redis://``, ``rediss://`` or ``unix://``, with user and database where they are needed; what redis-py knows of TLS
            follows as ``?ssl_ca_certs=/path&ssl_certfile=…``.
        password_file: File that holds the password, so that it need not stand in the address.
        name: Name of this process in its groups. A process that is started again under the same name goes on with what it
            held; two that run at once need two. Empty: host name, process id and a number.
        max_length: Messages kept per stream (about), where the topic does not allow fewer.
        max_tries: How often a message is handed out before it goes to the dead letters.
        retry_delay_s: Pause before the second try; it doubles with every further one.
        concurrency: Handlers of one subscription that run at once; order is kept with 1 only.
        batch: Messages read at once per handler, which wait while it runs; 1 where handlers run long.
        claim_idle_s: A member that shows no sign of life for so long is dead, and its messages go to others.
        forget_after_s: The name of a member that has shown no sign of life for so long and holds nothing is taken from its group.
        collect_after_s: A run's group that has had no living member for so long, and was handed nothing that is still there, is
            destroyed.
        block_s: How long a read waits for a message; a subscription ends within it.
        reply_limit_s: How long a command may take.
        publish_limit_s: How long ``publish`` goes on trying.
        close_limit_s: How long a handler may go on after the bus was closed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default="redis://localhost:6379", repr=False)
    password_file: Path | None = None
    name: str = ""
    max_length: int = Field(default=10_000, ge=1)
    max_tries: int = Field(default=3, ge=1)
    retry_delay_s: float = Field(default=0.05, ge=0)
    concurrency: int = Field(default=1, ge=1, le=256)
    batch: int = Field(default=64, ge=1)
    claim_idle_s: float = Field(default=30.0, gt=0)
    forget_after_s: float = Field(default=3_600.0, gt=0)
    collect_after_s: float = Field(default=86_400.0, gt=0)
    block_s: float = Field(default=0.25, gt=0, le=5)
    reply_limit_s: float = Field(default=2.0, gt=0)
    publish_limit_s: float = Field(default=5.0, gt=0)
    close_limit_s: float = Field(default=5.0, ge=0)
