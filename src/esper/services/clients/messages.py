"""What is asked and what is answered, and the limits of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esper.errors import ContractError, EsperError

Answer = TypeVar("Answer", bound=BaseModel)
Query = Mapping[str, str | Sequence[str]]


class TransportConfig(BaseModel):
    """Limits of a client.

    Attributes:
        deadline_s: Time of one call, all its tries together.
        try_s: Time of one try.
        transfer_s: Time of one transfer of bytes, however many.
        stall_s: How long a transfer may stand still.
        tries: How often a call that may be repeated is made at most.
        first_wait_s: Longest pause before the second try; it doubles with every further one, and is drawn at random below.
        longest_wait_s: Longest pause there is, also where the server asks for more.
        connections: Connections kept open at most.
        most_bytes: Longest answer that is read as a whole.
        failure_threshold: Outages in a row that open the breaker.
        recovery_timeout_s: Seconds until a probe is let through.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deadline_s: float = Field(default=30.0, gt=0)
    try_s: float = Field(default=10.0, gt=0)
    transfer_s: float = Field(default=600.0, gt=0)
    stall_s: float = Field(default=20.0, gt=0)
    tries: int = Field(default=4, ge=1, le=20)
    first_wait_s: float = Field(default=0.1, ge=0)
    longest_wait_s: float = Field(default=5.0, ge=0)
    connections: int = Field(default=32, ge=1)
    most_bytes: int = Field(default=64 * 2**20, ge=1024)
    failure_threshold: int = Field(default=5, ge=1)
    recovery_timeout_s: float = Field(default=60.0, gt=0)


@dataclass(frozen=True)
class Reply:
    """An answer that was no error.

    Attributes:
        status: Its status.
        headers: Its headers, case-insensitive.
        body: Its body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def read_as(self, kind: type[Answer]) -> Answer:
        """Return the body as what it must be.

        Raises:
            ContractError: If it is something else.
        """
        try:
            return kind.model_validate_json(self.body)
        except ValidationError as error:
            raise unexpected(f"no {kind.__name__}") from error


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        method: Its method.
        path: Its path, from the root of the service; quoted where it must be.
        query: Its parameters.
        body: Its body.
        headers: More headers.
        repeatable: Whether it may be sent again without a key, although its method does not say so.
    """

    method: str
    path: str
    query: Query = field(default_factory=dict)
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = False


class Refused(Exception):
    """An answer that is an error, with what only HTTP knows of it; it does not leave the transport.

    Args:
        error: The error that the answer stands for.
        status: Its status.
        retry_after_s: How long the server asks to wait; 0 where it does not.
    """

    def __init__(self, error: EsperError, *, status: int, retry_after_s: float) -> None:
        self.error, self.status, self.retry_after_s = error, status, retry_after_s
        super().__init__(str(error))


def unexpected(what: str) -> ContractError:
    """Return the error for an answer that is not what the service promises."""
    return ContractError(
        f"the answer was {what}",
        why="it is no service of this version",
        todo="look what answers there",
        code="ESP-3417",
    )


__all__ = ["Answer", "Query", "Refused", "Reply", "Request", "TransportConfig", "unexpected"]
