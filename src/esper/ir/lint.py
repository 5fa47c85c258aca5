"""What is wrong with a valid blueprint as a graft, with reasons."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from esper.errors import InvalidBlueprint
from esper.ir import ops
from esper.ir.birth import Grad, Value
from esper.ir.liveness import Liveness, liveness
from esper.ir.representation import BlueprintIR
from esper.ir.types import INPUT, Node


class Severity(StrEnum):
    """Whether a finding keeps a blueprint from being grafted."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        path: JSON path of the node.
        rule: Stable name of the rule, such as ``two-zero-factors``.
        severity: Errors break law 2; warnings waste parameters or time.
        what: What is wrong.
        why: The reason.
        todo: What to change.
    """

    path: str
    rule: str
    severity: Severity
    what: str
    why: str
    todo: str


def lint(ir: BlueprintIR) -> list[Finding]:
    """Look for what keeps a blueprint from being a good graft.

    Args:
        ir: A valid blueprint.

    Returns:
        Errors (it is not neutral at birth, or a part can never learn, or a parameter is redundant), the most telling
        first, then warnings.
    """
    life = liveness(ir)
    return [*_birth_findings(ir, life), *_idle_scales(ir), *_stacked_maps(ir)]


def check_birth(ir: BlueprintIR) -> None:
    """Refuse a blueprint that breaks law 2: neutral and alive at birth.

    Args:
        ir: A valid blueprint.

    Raises:
        InvalidBlueprint: If F(x) is not exactly zero at birth, if a zero factor gets no gradient at step 0, if a parameter
            gets none by step 2, or if one is redundant by symmetry.
    """
    for finding in _birth_findings(ir, liveness(ir)):
        raise InvalidBlueprint(finding.what, path=finding.path, why=finding.why, todo=finding.todo, code="ESP-3110")


def _birth_findings(ir: BlueprintIR, life: Liveness) -> list[Finding]:
    found = [*_norms_of_zero(ir, life), *_not_neutral(ir, life), *_redundant_biases(ir), *_redundant_norms(ir)]
    found = found or [*_series_of_zeros(ir, life)]
    return found or [*_never_live(ir, life), *_deaf(ir, life)]


def _error(ir: BlueprintIR, node_id: str, rule: str, what: str, why: str, todo: str) -> Finding:
    return Finding(_path(ir, node_id), rule, Severity.ERROR, what, why, todo)


def _path(ir: BlueprintIR, node_id: str) -> str:
    positions = {node.id: index for index, node in enumerate(ir.nodes)}
    return f"$.nodes[{positions[node_id]}]" if node_id in positions else "$.output"


def _not_neutral(ir: BlueprintIR, life: Liveness) -> Iterator[Finding]:
    if not life.is_neutral:
        yield _error(
            ir,
            ir.output,
            "not-neutral",
            "not neutral at birth",
            "F(x) is not zero before the first step: some path to the output has no zero factor",
            "Give the last linear or conv of each path init='zero'.",
        )


def _norms_of_zero(ir: BlueprintIR, life: Liveness) -> Iterator[Finding]:
    for node in ir.nodes:
        if node.op.endswith("_norm") and life.steps[0].values[node.inputs[0]] is Value.ZERO:
            yield _error(
                ir,
                node.id,
                "norm-of-zero",
                f"{node.op} {node.id!r} follows a zero factor",
                "it would blow the first tiny step up to full strength",
                "Put the zero factor last.",
            )


def _series_of_zeros(ir: BlueprintIR, life: Liveness) -> Iterator[Finding]:
    birth = life.steps[0]
    for node in ir.nodes:
        names = {name for name in life.zero_factors if name.partition(".")[0] == node.id}
        if names <= birth.live:
            continue
        if birth.values[node.inputs[0]] is Value.ZERO:
            what, why = "dead at birth", f"its input is zero at birth: {_origin_of_zero(ir, life, node.inputs[0])}"
        else:
            what, why = "dead at birth", f"no gradient reaches it: {_blocked_by(ir, life, node.id)}"
        yield _error(
            ir,
            node.id,
            "two-zero-factors",
            f"zero factor {node.id!r} is {what}",
            why,
            "Keep exactly one zero factor on each path: the last linear or conv.",
        )


def _origin_of_zero(ir: BlueprintIR, life: Liveness, value_id: str) -> str:
    """Name the first node upstream that makes a zero of something that is none."""
    values = life.steps[0].values
    by_id = {node.id: node for node in ir.nodes}
    while True:
        node = by_id[value_id]
        zeros = [source for source in node.inputs if values[source] is Value.ZERO]
        if not zeros:
            return f"{node.op} {node.id!r} makes it so"
        value_id = zeros[-1]


def _blocked_by(ir: BlueprintIR, life: Liveness, value_id: str) -> str:
    """Name the node downstream at which the gradient stops."""
    birth = life.steps[0]
    for node in ir.nodes:
        if value_id not in node.inputs:
            continue
        if birth.grads[node.id] is Grad.NONE:
            return _blocked_by(ir, life, node.id)
        return _stop(node, value_id, birth.values)
    return "it does not reach the output"


def _stop(node: Node, value_id: str, values: dict[str, Value]) -> str:
    if node.op == "relu":
        return f"relu {node.id!r} has slope zero at zero"
    if node.op == "mul":
        other = next((source for source in node.inputs if source != value_id), value_id)
        return f"it is multiplied by {other!r}, which is {values[other].value} at birth"
    if node.op == "scale":
        return f"scale {node.id!r} is zero"
    return f"{node.op} {node.id!r} lets none through"


def _never_live(ir: BlueprintIR, life: Liveness) -> Iterator[Finding]:
    trainable = [name for name, tensor in ir.tensors.items() if tensor.trainable]
    for name in trainable:
        if name in life.ever_live:
            continue
        node_id, _, tensor = name.partition(".")
        if tensor == "bias" and life.steps[-1].grads[node_id] is Grad.CENTRED:
            yield _redundant(
                ir, node_id, "its gradient is zero whatever the data, as attention ignores a shift of keys"
            )
            continue
        yield _error(
            ir,
            node_id,
            "never-live",
            f"parameter {name!r} is dead",
            f"it gets no gradient in steps 0 to 2: {_why_dead(ir, life, node_id)}",
            "Remove what cannot learn.",
        )


def _why_dead(ir: BlueprintIR, life: Liveness, node_id: str) -> str:
    last = life.steps[-1]
    if last.grads[node_id] is Grad.NONE:
        return _blocked_by(ir, life, node_id)
    return "what it works on does not vary"


def _redundant(ir: BlueprintIR, node_id: str, why: str) -> Finding:
    return _error(ir, node_id, "redundant-bias", f"the bias of {node_id!r} is redundant", why, "Set bias to false.")


def _redundant_biases(ir: BlueprintIR) -> Iterator[Finding]:
    """A mean that is taken off takes a bias off too, wholly or in part."""
    for node in ir.nodes:
        if node.attrs.get("bias") is not True:
            continue
        ends = _ends(ir, node.id)
        if ends and all(end in ("batch_norm", "group_norm", "layer_norm") for end in ends):
            yield _redundant(ir, node.id, f"a {ends[0]} follows and takes the mean off")


def _redundant_norms(ir: BlueprintIR) -> Iterator[Finding]:
    """A batch norm scales each channel anew, so what scaled the channels before it cannot be seen behind it."""
    for node in ir.nodes:
        ends = _ends(ir, node.id) if node.op.endswith("_norm") else []
        if ends and all(end == "batch_norm" for end in ends):
            yield _error(
                ir,
                node.id,
                "redundant-norm",
                f"the weight of {node.id!r} is redundant",
                "a batch_norm follows and scales each channel anew",
                "Keep one of the two norms.",
            )


def _ends(ir: BlueprintIR, value_id: str) -> list[str]:
    """Name the operations at which a value arrives, looking through scales; 'output' where it leaves."""
    ends = ["output"] if value_id == ir.output else []
    for node in ir.nodes:
        if value_id in node.inputs:
            ends += _ends(ir, node.id) if node.op == "scale" else [node.op]
    return ends


def _deaf(ir: BlueprintIR, life: Liveness) -> Iterator[Finding]:
    if life.is_neutral and life.steps[-1].values[ir.output] is not Value.VARIED:
        yield _error(
            ir,
            ir.output,
            "ignores-input",
            "it ignores its input",
            "F(x) stays the same for every x, however it is trained",
            f"Lead {INPUT!r} to the output.",
        )


def _idle_scales(ir: BlueprintIR) -> Iterator[Finding]:
    for node in ir.nodes:
        if node.op == "scale" and node.attrs["value"] == 1.0:
            yield Finding(
                _path(ir, node.id),
                "idle-scale",
                Severity.WARNING,
                f"scale {node.id!r} does nothing",
                "it is 1",
                "Remove it.",
            )


def _stacked_maps(ir: BlueprintIR) -> Iterator[Finding]:
    by_id = {node.id: node for node in ir.nodes}
    for node in ir.nodes:
        before = by_id.get(node.inputs[0])
        if node.op == "linear" and before is not None and before.op == "linear":
            narrow = ops.get("linear").width(ir.uses[ir.nodes.index(before)]) < min(ir.channels, ir.out_channels)
            if not narrow:
                yield Finding(
                    _path(ir, node.id),
                    "stacked-maps",
                    Severity.WARNING,
                    f"linear {node.id!r} follows linear {before.id!r}",
                    "two linear maps in a row compute no more than one",
                    "Put a nonlinearity between them.",
                )
