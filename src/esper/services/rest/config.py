"""Settings that every service over HTTP has."""

from functools import lru_cache
from ipaddress import ip_address

from pydantic import BaseModel, ConfigDict, Field

LOOPBACK_NAMES = ("localhost", "ip6-localhost")


class RestConfig(BaseModel):
    """Where a service listens, and what it lets callers do.

    Attributes:
        host: Address that it listens on. Beyond loopback every caller needs a key.
        port: Port that it listens on; 0 takes one that is free.
        require_keys: Whether callers on loopback need a key too.
        requests_per_s: Requests that one caller may make per second, on the average; 0 sets no limit.
        burst: Requests that one caller may make at once.
        refusals_per_s: Keys that one address may get wrong per second, on the average.
        max_body_bytes: Longest JSON body.
        max_depth: Deepest nesting of a JSON body.
        body_limit_s: How long a JSON body may take to arrive.
        header_limit_s: How long the head of a request may take to arrive.
        max_header_bytes: Longest head of a request.
        max_concurrency: Requests and connections at once; more are told to come back.
        keep_alive_s: How long an idle connection is kept.
        drain_s: How long it says that it is not ready before it stops accepting connections.
        close_limit_s: How long requests in hand may take after that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    require_keys: bool = False
    requests_per_s: float = Field(default=1000.0, ge=0)
    burst: int = Field(default=2000, ge=1)
    refusals_per_s: float = Field(default=5.0, gt=0)
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024)
    max_depth: int = Field(default=32, ge=4, le=200)
    body_limit_s: float = Field(default=10.0, gt=0)
    header_limit_s: float = Field(default=10.0, gt=0)
    max_header_bytes: int = Field(default=32 * 1024, ge=1024)
    max_concurrency: int = Field(default=1000, ge=1)
    keep_alive_s: int = Field(default=15, ge=1)
    drain_s: float = Field(default=0.0, ge=0)
    close_limit_s: int = Field(default=20, ge=1)

    @property
    def needs_keys(self) -> bool:
        """Whether every caller needs a key."""
        return self.require_keys or not is_loopback(self.host)


@lru_cache(maxsize=1024)
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
