"""Settings of the store's HTTP service."""

from ipaddress import ip_address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from esper.services.urza.garbage import RetentionConfig

LOOPBACK_NAMES = ("localhost", "ip6-localhost")


class UrzaConfig(BaseModel):
    """Where the service listens, what it keeps its data in, and what it lets callers do.

    Attributes:
        host: Address that it listens on. Beyond loopback every caller needs a key.
        port: Port that it listens on; 0 takes one that is free.
        root: Folder of the library: ``library.db`` and ``blobs``, where nothing else is named.
        database_url: ``postgresql://user:password@host/name`` in place of SQLite in ``root``.
        s3_bucket: Bucket in place of the folder ``blobs``.
        s3_endpoint: Address of an S3 server other than Amazon's.
        s3_region: Region of the bucket.
        s3_access_key_id: Who the service is to it; without it, what the machine's role or the usual ``AWS_`` variables say.
        s3_secret_access_key: How it proves it.
        bus_url: ``redis://…`` where blueprints are announced; without one, announcements wait in the database.
        require_keys: Whether callers on loopback need a key too.
        requests_per_s: Requests that one caller may make per second, on the average; 0 sets no limit.
        burst: Requests that one caller may make at once.
        refusals_per_s: Keys that one address may get wrong per second, on the average.
        max_body_bytes: Longest JSON body.
        max_blob_bytes: Longest artifact.
        max_depth: Deepest nesting of a JSON body.
        body_limit_s: How long a JSON body may take to arrive.
        stall_limit_s: How long the sender of an artifact may stand still.
        header_limit_s: How long the head of a request may take to arrive.
        max_header_bytes: Longest head of a request.
        max_concurrency: Requests and connections at once; more are told to come back.
        keep_alive_s: How long an idle connection is kept.
        cache_bytes: Memory for answers that cannot change.
        status_age_s: How old the knowledge may be that a kernel is validated, where another process may have retired it.
        drain_s: How long it says that it is not ready before it stops accepting connections.
        close_limit_s: How long requests in hand may take after that.
        retention: How long things are kept that are of no use any more; ``[urza.retention]``, or JSON in a variable.
        collect_every_s: From one collection of garbage to the next, in the mean; 0 leaves it to ``esper library collect``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    root: Path = Path("./esper-library")
    database_url: SecretStr | None = None
    s3_bucket: str | None = None
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    bus_url: SecretStr | None = None
    require_keys: bool = False
    requests_per_s: float = Field(default=1000.0, ge=0)
    burst: int = Field(default=2000, ge=1)
    refusals_per_s: float = Field(default=5.0, gt=0)
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024)
    max_blob_bytes: int = Field(default=4 * 2**30, ge=1024)
    max_depth: int = Field(default=32, ge=4, le=200)
    body_limit_s: float = Field(default=10.0, gt=0)
    stall_limit_s: float = Field(default=20.0, gt=0)
    header_limit_s: float = Field(default=10.0, gt=0)
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    max_concurrency: int = Field(default=1000, ge=1)
    keep_alive_s: int = Field(default=15, ge=1)
    cache_bytes: int = Field(default=64 * 2**20, ge=0)
    status_age_s: float = Field(default=2.0, ge=0)
    drain_s: float = Field(default=0.0, ge=0)
    close_limit_s: int = Field(default=20, ge=1)
    retention: RetentionConfig = RetentionConfig()
    collect_every_s: float = Field(default=3600.0, ge=0)

    @property
    def needs_keys(self) -> bool:
        """Whether every caller needs a key."""
        return self.require_keys or not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Say whether an address is this machine's own."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
