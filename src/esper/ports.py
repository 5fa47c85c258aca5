"""The architecture in one file: parts meet only through these protocols.

Each protocol states the law that every implementation keeps; `esper.testing` has the suite that checks it.
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

import msgspec

from esper.contracts.adaptation import AdaptationDecision, Outcome, SystemStatePacket
from esper.contracts.ids import MessageId
from esper.contracts.kernel import (
    BlueprintStatus,
    BlueprintSubmissionRequest,
    BlueprintSubmissionResponse,
    BuildSpec,
    CompiledKernelArtifact,
    CompiledKernelContract,
    CompileJob,
    InferenceArtifact,
    Measurement,
    ValidationResult,
)
from esper.contracts.topics import Message


class Delivery(msgspec.Struct, frozen=True):
    """One message in a handler's hands.

    Attributes:
        id: The envelope's id; equal over redeliveries.
        stream: Where it came from.
        body: The decoded message.
        run_id: The run that it belongs to, or None.
        redelivered: Whether it was handed out before.
    """

    id: MessageId
    stream: str
    body: Message
    run_id: str | None
    redelivered: bool


DeliveryHandler: TypeAlias = Callable[[Delivery], Awaitable[None]]


class Acknowledge(StrEnum):
    """When a message counts as acknowledged.

    Attributes:
        AFTER_HANDLING: Once its handler has returned: it is handed out at least once, and a handler that must act once
            knows a message again by its id.
        ON_RECEIPT: Before its handler is called: it is handed out at most once. What a handler fails at, or holds when its
            process ends, is gone. For telemetry, where the next message says more than the last one again.
    """

    AFTER_HANDLING = "after_handling"
    ON_RECEIPT = "on_receipt"


class Clock(Protocol):
    """Time, injected so that tests can own it."""

    def now_s(self) -> float:
        """Return seconds since the epoch, UTC."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds of a clock that never goes back."""
        ...


@dataclass(frozen=True)
class BusHealth:
    """Whether a bus takes messages now, and how it stands.

    Attributes:
        usable: Whether it would take a message that is published now.
        why: Why not, or empty.
        server: What holds the messages, such as ``Redis 7.0.15`` or ``this process``.
        answered_s: How long the answer took.
        streams: Streams that it holds, or None where nobody answers.
        messages: Messages in them, or None where nobody answers.
        used_bytes: What they take, with all else that is held in the same memory or file, or None where that is not known.
        limit_bytes: What they may take, or None where there is no limit.
    """

    usable: bool
    why: str
    server: str
    answered_s: float
    streams: int | None = None
    messages: int | None = None
    used_bytes: int | None = None
    limit_bytes: int | None = None


class MessageBus(Protocol):
    """Messages between parts.

    Laws:
        * *Order.* A stream keeps the order in which its messages were taken. A member that handles one message at a time is
          handed them in it, and a failed one again before the next; what a member left behind may come to another later
          than messages that are newer. Between streams there is no order.
        * *At least once.* A message reaches every group of its stream. A new group begins where it says; a known one goes on
          where it stood, also after a time without members, and what fails in one group is no matter of another.
        * *Acknowledgement.* With ``AFTER_HANDLING`` a message counts as acknowledged once its handler has returned, with
          ``ON_RECEIPT`` before it is called; one that is acknowledged is not handed out again. An acknowledgement may itself
          be lost where a process or a server dies right after it.
        * *Redelivery.* A message that is not acknowledged is handed out again with the same id and ``redelivered`` set: after
          a pause where the handler raised, and to another member where its own one ended.
        * *Dead letters.* After the last allowed try a message moves to the stream ``{stream}.dead`` with its reason, and is
          acknowledged with that; a dead letter that cannot be handled in its turn is dropped and counted. What
          ``ON_RECEIPT`` was handed and failed at is counted, and no dead letter.
        * *Trimming.* Where a bus keeps a bounded number of messages, the oldest go first; what a group has not seen is lost
          only where that is counted for that group.
        * *Publishing.* ``publish`` never changes its argument, and returns when the message is held as safely as this bus can
          hold it. Where it raises BusUnavailable the message may be held nevertheless: whoever tries again does so with the
          same ``message_id``, by which readers know it.
        * *Health.* ``health`` asks whatever holds the messages, there and then, in the way of a message, and changes nothing.
          Where one would not be taken it says so and why, and raises nothing.
        * *Shutdown.* ``close`` lets each handler finish the message in hand, or cancels it after a limit; that message is then
          not acknowledged, as is none that was read and not begun. Afterwards nothing more is handed out, and every call but
          another ``close`` raises BusUnavailable.
    """

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        """Append a message to a stream.

        Args:
            stream: Name of the stream.
            message: A contract that is declared for the stream, or plain data.
            run_id: The run that it belongs to.
            message_id: The id that it was sent under before, where it is sent again; otherwise it gets a fresh one.

        Returns:
            The message's id.

        Raises:
            BusUnavailable: If the bus does not answer; the message may be held nevertheless.
            ContractError: If the message does not keep the topic's contract.
        """
        ...

    async def subscribe(
        self,
        stream: str,
        group: str,
        handler: DeliveryHandler,
        *,
        start_from: str = ">",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        """Hand messages of a stream to ``handler``, as a member of ``group``, until the bus is closed.

        Args:
            stream: Name of the stream.
            group: Its members share the work; other groups see every message too.
            handler: Returns when its effect is durable.
            start_from: Where a new group begins: ``">"`` with new messages, ``"0"`` with the oldest one held.
            acknowledge: When a message that was handed out counts as acknowledged.

        Raises:
            BusUnavailable: If the bus is closed already.
            ConfigError: If ``start_from`` is neither ``">"`` nor ``"0"``.
        """
        ...

    async def health(self) -> BusHealth:
        """Tell whether the bus takes messages now.

        Raises:
            BusUnavailable: If the bus is closed.
            ConfigError: If this user may not ask.
        """
        ...

    async def close(self) -> None:
        """End every subscription after the message in hand, and release what is held."""
        ...


@dataclass(frozen=True)
class BlobEntry:
    """Bytes that a store holds.

    Attributes:
        digest: Their content address.
        size_bytes: How many.
        stored_at: When they were stored, in seconds since the epoch.
    """

    digest: str
    size_bytes: int
    stored_at: float


class BlobStore(Protocol):
    """Bytes by content address.

    Laws: what ``put`` or ``put_stream`` returned can be read; what is read has the digest that was asked for; nothing is
    overwritten; bytes that have not the digest that was claimed are never there, not even for a moment.
    """

    async def put(self, data: bytes) -> str:
        """Store bytes and return their content address, ``sha256:<hex>``."""
        ...

    async def get(self, digest: str) -> bytes:
        """Return the bytes.

        Raises:
            NotFound: If there are none.
            StoreUnavailable: If they do not have that digest any more, or cannot be read.
        """
        ...

    async def put_stream(self, digest: str, size_bytes: int, chunks: AsyncIterable[bytes]) -> None:
        """Store bytes as they come, holding few of them in memory.

        Raises:
            ContractError: If they are not as many as was said, or have another digest; nothing is stored then.
        """
        ...

    def stream(self, digest: str, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """Return bytes as they are read, holding few of them in memory.

        The digest is verified where all are read; the last chunk comes only if it is right.

        Args:
            digest: Their content address.
            start: First byte.
            stop: Byte before which to stop; at the end where it is left out.

        Raises:
            NotFound: If there are none.
            StoreUnavailable: If they do not have that digest any more, or cannot be read.
        """
        ...

    async def size(self, digest: str) -> int:
        """Return how many bytes there are.

        Raises:
            NotFound: If there are none.
        """
        ...

    async def delete(self, digest: str) -> None:
        """Remove the bytes where there are any; only garbage collection does."""
        ...

    def entries(self) -> AsyncIterator[BlobEntry]:
        """Return everything that is held."""
        ...

    async def link(self, digest: str, expires_s: float) -> str | None:
        """Return an address from which anybody may read the bytes for a while, or None where the store has no such."""
        ...


class Library(Protocol):
    """Blueprints and kernels, as a trainer or controller sees them.

    Laws: a kernel that is found is validated; its bytes have the digest that is its id; submitting an equal blueprint and
    build twice makes one job.
    """

    async def submit(self, request: BlueprintSubmissionRequest) -> BlueprintSubmissionResponse:
        """Store a blueprint and queue it for the forge."""
        ...

    async def find(self, blueprint_id: str, build: BuildSpec) -> CompiledKernelContract | None:
        """Return the validated kernel of a blueprint, or None while there is none.

        Raises:
            KernelRejected: If the forge refused it; the reasons are in the error.
        """
        ...

    async def read(self, kernel_id: str) -> bytes:
        """Return the bytes of a validated kernel, digest verified.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated.
        """
        ...

    async def withdraw(self, blueprint_id: str, build: BuildSpec) -> None:
        """End a build that waits or is at work; submitting it again starts over.

        Raises:
            NotFound: If there is no such build.
            Conflict: If it has ended already.
        """
        ...

    async def report(self, outcome: Outcome) -> None:
        """Record what a graft brought; a decision has one record, with the verdict that came last."""
        ...


class CompileQueue(Protocol):
    """Work for the forge.

    Laws: a job is held by one worker at a time, for as long as its lease lasts; a lease that ran out returns the job; a
    completed job's kernel and report become visible together or not at all; a job that killed two workers is quarantined,
    unless it was to finish a kernel, which is proven and stays. Jobs that finish are the least urgent.
    """

    async def claim(self, worker: str, *, lease_s: float, finishing: bool = True) -> CompileJob | None:
        """Take the most urgent job, or None where there is none; without ``finishing`` only one that builds."""
        ...

    async def review(self, worker: str, hardware: str, *, lease_s: float) -> CompileJob | None:
        """Take the most used kernel that was not measured on some hardware, to prove it again; None where there is none."""
        ...

    async def renew(self, job_id: str, worker: str, *, lease_s: float) -> None:
        """Keep a job that takes long.

        Raises:
            Conflict: If the lease ran out and somebody else holds the job.
        """
        ...

    async def complete(
        self, job_id: str, worker: str, artifact: CompiledKernelArtifact, report: ValidationResult
    ) -> CompiledKernelContract:
        """Store the kernel with its report and the forms that it has, and end the job.

        Where it was not measured, or the build asks for a higher level than the artifact has, a job follows that finishes it.
        """
        ...

    async def finish(
        self,
        job_id: str,
        worker: str,
        forms: Sequence[InferenceArtifact],
        performance: Measurement | None = None,
        shortfall: str = "",
        report: ValidationResult | None = None,
    ) -> None:
        """Add to the kernel of a finishing job, or of a review, what was made of it, and end the job.

        Args:
            job_id: The job.
            worker: Who holds it.
            forms: What levels add, sealed.
            performance: A later measurement of the kernel, or None.
            shortfall: Why it has not all that its build asks for.
            report: What a review found; a kernel that does not pass it is withdrawn.

        Raises:
            KernelRejected: If a form is not what it says it is, or has no seal.
            Conflict: If the lease ran out and somebody else holds the job.
        """
        ...

    async def fail(
        self, job_id: str, worker: str, reason: str, *, retry: bool, killed: bool = False
    ) -> BlueprintStatus:
        """Give a job up, for another try or for good; the reason is stored.

        Args:
            job_id: The job.
            worker: Who holds it.
            reason: Why it failed.
            retry: Whether another try may help.
            killed: Whether it killed the process that worked on it.

        Returns:
            What became of the blueprint.

        Raises:
            Conflict: If the lease ran out and somebody else holds the job.
        """
        ...

    async def release(self, job_id: str, worker: str) -> None:
        """Return a job untried, because the worker stops."""
        ...


class Advisor(Protocol):
    """Decides about growth.

    Laws: the decision is a function of the packet, the advisor's own versioned state and its injected seed; it does no I/O
    while it decides; it never asks for what the packet masks.
    """

    async def decide(self, packet: SystemStatePacket) -> AdaptationDecision:
        """Choose what to do at this boundary.

        Raises:
            Unavailable: If the advisor cannot be asked; that is not a "no".
        """
        ...

    async def learn(self, outcome: Outcome) -> None:
        """Take in what a decision brought; the same decision counts once."""
        ...


class StateStore(Protocol):
    """Small named state, kept over restarts.

    Laws: ``put`` is atomic; ``get`` returns what was put last, or None.
    """

    async def put(self, key: str, value: bytes) -> None:
        """Store a value."""
        ...

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        ...
