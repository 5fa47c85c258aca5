"""Settings of the store's HTTP service."""

from pathlib import Path

from pydantic import Field, SecretStr

from esper.services.rest.config import RestConfig
from esper.services.urza.garbage import RetentionConfig


class UrzaConfig(RestConfig):
    """What every service has, and what this one keeps its data in.

    Attributes:
        root: Folder of the library: ``library.db`` and ``blobs``, where nothing else is named.
        database_url: ``postgresql://user:password@host/name`` in place of SQLite in ``root``.
        s3_bucket: Bucket in place of the folder ``blobs``.
        s3_endpoint: Address of an S3 server other than Amazon's.
        s3_region: Region of the bucket.
        s3_access_key_id: Who the service is to it; without it, what the machine's role or the usual ``AWS_`` variables say.
        s3_secret_access_key: How it proves it.
        bus_url: ``redis://…`` where blueprints are announced; without one, announcements wait in the database.
        max_blob_bytes: Longest artifact.
        stall_limit_s: How long the sender of an artifact may stand still.
        extensions: Modules with operations of one's own, whose designs are taken; only their shape rules and costs are asked for.
        cache_bytes: Memory for answers that cannot change.
        status_age_s: How old the knowledge may be that a kernel is validated, where another process may have retired it.
        retention: How long things are kept that are of no use any more; ``[urza.retention]``, or JSON in a variable.
        collect_every_s: From one collection of garbage to the next, in the mean; 0 leaves it to ``esper library collect``.
    """

    port: int = Field(default=8000, ge=0, le=65535)
    root: Path = Path("./esper-library")
    database_url: SecretStr | None = None
    s3_bucket: str | None = None
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key_id: str | None = None
    s3_secret_access_key: SecretStr | None = None
    bus_url: SecretStr | None = None
    max_blob_bytes: int = Field(default=4 * 2**30, ge=1024)
    stall_limit_s: float = Field(default=20.0, gt=0)
    extensions: tuple[str, ...] = ()
    cache_bytes: int = Field(default=64 * 2**20, ge=0)
    status_age_s: float = Field(default=2.0, ge=0)
    retention: RetentionConfig = RetentionConfig()
    collect_every_s: float = Field(default=3600.0, ge=0)
