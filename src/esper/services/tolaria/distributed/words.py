"""What travels between ranks, as JSON and raw bytes: errors, decisions, kernels. Nothing is pickled."""

import json
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from esper import errors
from esper.contracts.adaptation import AdaptationDecision
from esper.errors import EsperError, KernelRejected, Unavailable
from esper.ir import digest_of

if TYPE_CHECKING:
    from esper.services.tolaria.distributed.team import Team
    from esper.services.tolaria.kernels import ReadyKernel


def error_to_bytes(error: Exception) -> bytes:
    """Return an error as JSON; one that is not Esper's by its text."""
    if isinstance(error, EsperError):
        body = {"kind": type(error).__name__, "fields": vars(error), "message": str(error)}
    else:
        body = {"kind": "", "message": f"{type(error).__name__}: {error}"}
    return json.dumps(body, default=str).encode()


def error_from_bytes(data: bytes) -> EsperError:
    """Return the error that another rank met: of its own class where it is Esper's."""
    body = json.loads(data)
    kind = getattr(errors, body["kind"], None)
    if isinstance(kind, type) and issubclass(kind, EsperError):
        return errors._restored(kind, body["fields"], body["message"])
    return Unavailable("another rank failed", why=body["message"], todo="see its own output")


def decision_to_bytes(
    decision: AdaptationDecision | None,
    boundary: int,
    why: str | None,
    refused: Sequence[tuple[AdaptationDecision, str]] = (),
) -> bytes:
    """Return what was decided: what is scheduled and its boundary, why the controller was not asked, what was refused."""
    told = [[refusal.model_dump(mode="json"), reason] for refusal, reason in refused]
    body: dict[str, Any] = {"boundary": boundary, "why": why, "decision": None, "refused": told}
    if decision is not None:
        body["decision"] = decision.model_dump(mode="json")
    return json.dumps(body).encode()


def decision_from_bytes(
    data: bytes,
) -> tuple[AdaptationDecision | None, int, str | None, list[tuple[AdaptationDecision, str]]]:
    """Read what ``decision_to_bytes`` wrote."""
    body = json.loads(data)
    decision = None if body["decision"] is None else AdaptationDecision(**body["decision"])
    refused = [(AdaptationDecision(**refusal), reason) for refusal, reason in body["refused"]]
    return decision, body["boundary"], body["why"], refused


def kernel_to_bytes(kernel: "ReadyKernel | None") -> bytes:
    """Return a kernel with its content address: a length, JSON, the kernel's own bytes; nothing where there is none."""
    if kernel is None:
        return b""
    head = {"kernel_id": kernel.kernel_id, "blueprint": kernel.blueprint, "latency_ms": kernel.latency_ms}
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + kernel.data


def kernel_from_bytes(data: bytes) -> "ReadyKernel | None":
    """Read what ``kernel_to_bytes`` wrote.

    Raises:
        KernelRejected: If the kernel's bytes are not what its address says.
    """
    from esper.services.tolaria.kernels import ReadyKernel

    if not data:
        return None
    (size,) = struct.unpack_from("<Q", data)
    head, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if digest_of(body) != head["kernel_id"]:
        raise KernelRejected(
            f"kernel {head['kernel_id']}",
            why="what came from rank 0 has another digest",
            todo="look at the network between the ranks; nothing was parsed",
        )
    return ReadyKernel(head["kernel_id"], head["blueprint"], body, head["latency_ms"])


def told_kernel(team: "Team", make: "Callable[[], ReadyKernel | None]") -> "ReadyKernel | None":
    """Return the leader's kernel everywhere, verified by its digest; None where it has none yet."""
    if team.size == 1:
        return make()
    return kernel_from_bytes(team.told(lambda: kernel_to_bytes(make())))
