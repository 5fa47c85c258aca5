"""What the forge refuses before any process starts: what is invalid, dead or too large."""

from collections.abc import Mapping
from dataclasses import dataclass

from esper.errors import CompilationError
from esper.ir import BlueprintIR, Caps, check_birth, ops
from esper.services.tezzeret.probes import load_of, probes_of

_MIB = 2**20
_BYTES_PER_PARAM = 80
"""Weights in their own type and in float64, their bytes, copies, gradients and directions; 48 to 77 were measured."""
_BYTES_PER_ELEMENT = 64
"""Values, gradients and work space, most of them in float64; 46 were measured for a large map."""
_FLOPS_PER_S = 2 * 10**9
"""What validation gets done on a shared core: 2 (depthwise) to 13 GFLOP/s were measured."""


@dataclass(frozen=True)
class ForgeLimits:
    """What one build may take.

    Attributes:
        memory_limit_mb: Memory of one job. 2 GiB admit 26 million parameters and leave a laptop of 8 GiB usable.
        deadline_s: Time of one job; a build of the catalogue takes a twentieth of a second.
    """

    memory_limit_mb: int = 2048
    deadline_s: float = 60.0

    @property
    def caps(self) -> Caps:
        """Caps on blueprints, narrower than the outermost ones where memory asks for it."""
        widest = Caps()
        return Caps(params=min(widest.params, self.memory_limit_mb * _MIB // _BYTES_PER_PARAM))


def screen(document: object, limits: ForgeLimits) -> BlueprintIR:
    """Read a blueprint, and refuse it where no child need look at it.

    Args:
        document: Its JSON, as text or parsed.
        limits: What one build may take.

    Returns:
        A valid blueprint that is neutral and alive at birth, and whose build keeps the limits.

    Raises:
        InvalidBlueprint: If it breaks a rule, or law 2.
        CompilationError: If validating it would take too long or too much memory.
    """
    ir = BlueprintIR.from_json(document, caps=limits.caps)
    check_birth(ir)
    load = load_of(ir, probes_of(ir))
    needed_mb = (load.params * _BYTES_PER_PARAM + load.elements * _BYTES_PER_ELEMENT) // _MIB
    if needed_mb > limits.memory_limit_mb:
        raise CompilationError(
            f"blueprint {ir.name!r} is too large",
            why=f"validating it takes about {needed_mb} MiB; the limit is {limits.memory_limit_mb}",
            todo="make it smaller, or raise memory_limit_mb of the forge",
            code="ESP-7110",
        )
    needed_s = load.flops / _FLOPS_PER_S
    if needed_s > limits.deadline_s:
        raise CompilationError(
            f"blueprint {ir.name!r} is too slow",
            why=f"validating it takes up to {needed_s:.0f} s; the deadline is {limits.deadline_s:g} s",
            todo="make it smaller, or raise deadline_s of the forge",
            code="ESP-7120",
        )
    return ir


def knows_all_operations(document: Mapping[str, object]) -> bool:
    """Say whether this process can judge a blueprint; extensions may be installed in the children alone."""
    nodes = document.get("nodes")
    if not isinstance(nodes, list):
        return True
    named = {str(node["op"]) for node in nodes if isinstance(node, dict) and "op" in node}
    return all(op in ops.names() for op in named if "." in op)
