"""Everything that is wrong with the text of a blueprint, each with its place: what a compiler tells of a program."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from esper.errors import InvalidBlueprint
from esper.ir import ops
from esper.ir.caps import CAPS
from esper.ir.codec import checked_head, checked_node, loaded
from esper.ir.graph_check import Form, completed_node, spec_of
from esper.ir.lint import Finding, Severity, lint
from esper.ir.places import Span, places_of
from esper.ir.representation import BlueprintIR
from esper.ir.types import INPUT, Layout, Node

Result = TypeVar("Result")


@dataclass(frozen=True)
class Fault:
    """One finding in a text.

    Attributes:
        finding: What is wrong.
        line: From 1.
        column: From 1.
        length: Letters to underline on that line.
    """

    finding: Finding
    line: int
    column: int
    length: int


@dataclass(frozen=True)
class Diagnosis:
    """What is to be said of a text.

    Attributes:
        ir: The blueprint, where no rule of the representation is broken.
        faults: In the order of the text.
    """

    ir: BlueprintIR | None
    faults: tuple[Fault, ...]

    @property
    def is_sound(self) -> bool:
        """Whether it may be submitted: there are warnings at most."""
        return all(fault.finding.severity is not Severity.ERROR for fault in self.faults)


def diagnose(text: str) -> Diagnosis:
    """Find what is wrong with a blueprint's text; a fault that only follows from another is not told.

    Args:
        text: What should be JSON.
    """
    try:
        value = loaded(text, CAPS)
    except InvalidBlueprint as error:
        at = error.__cause__.pos if isinstance(error.__cause__, json.JSONDecodeError) else 0
        return Diagnosis(None, (_placed(text, _finding(error), (at, at + 1)),))
    broken = list(_broken(value))
    ir: BlueprintIR | None = None
    if not broken:
        try:
            ir = BlueprintIR.from_json(text)
        except InvalidBlueprint as error:
            broken = [error]
    findings = [_finding(error) for error in broken] if ir is None else lint(ir)
    places = places_of(text)
    faults = [_placed(text, finding, _place(places, finding.path)) for finding in findings]
    return Diagnosis(ir, tuple(sorted(faults, key=lambda fault: (fault.line, fault.column))))


def _broken(value: object) -> Iterator[InvalidBlueprint]:
    """Check the head and each node on its own; what depends on a broken node is passed over."""
    yield from checked_head(value)
    fields = value if isinstance(value, dict) else {}
    entries, channels, layout = fields.get("nodes"), fields.get("channels"), fields.get("layout")
    forms: dict[str, Form] | None = None
    if isinstance(channels, int) and channels > 0 and layout in list(Layout):
        forms = {INPUT: Form(channels)}
    unknown: set[str] = set()
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        node, error = _tried(lambda: checked_node(entry, f"$.nodes[{index}]"))  # noqa: B023
        if node is None:
            unknown |= {entry["id"]} if isinstance(entry, dict) and isinstance(entry.get("id"), str) else set()
        elif forms is None or unknown.intersection(node.inputs):
            unknown.add(node.id)
            error = _tried(lambda: spec_of(node, f"$.nodes[{index}]"))[1]  # noqa: B023
        else:
            error = _grown(node, index, forms, Layout(str(layout)))
            if error is not None:
                unknown.add(node.id)
        if error is not None:
            yield error
    output = fields.get("output")
    if isinstance(output, str) and isinstance(entries, list) and forms is not None and output not in {*forms, *unknown}:
        near = ops.near(output[:80], {*forms, *unknown})
        yield InvalidBlueprint(f"there is no node {output[:80]!r}", path="$.output", todo=near)


def _grown(node: Node, index: int, forms: dict[str, Form], layout: Layout) -> InvalidBlueprint | None:
    done, error = _tried(lambda: completed_node(node, index, forms, layout, CAPS))
    if done is not None:
        forms[node.id] = done[2]
    return error


def _tried(work: Callable[[], Result]) -> tuple[Result | None, InvalidBlueprint | None]:
    try:
        return work(), None
    except InvalidBlueprint as error:
        return None, error


def _finding(error: InvalidBlueprint) -> Finding:
    what = error.what.removesuffix(f" at {error.path}")
    return Finding(error.path, "invalid", Severity.ERROR, what, error.why, error.todo)


def _place(places: dict[str, Span], path: str) -> Span:
    """Return the place of a path, or of the nearest value around it that is there."""
    while path not in places and path != "$":
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else "$"
    return places.get(path, (0, 1))


def _placed(text: str, finding: Finding, span: Span) -> Fault:
    begin, end = span
    line_start = text.rfind("\n", 0, begin) + 1
    line_end = text.find("\n", begin)
    line_end = len(text) if line_end < 0 else line_end
    return Fault(finding, text.count("\n", 0, begin) + 1, begin - line_start + 1, max(1, min(end, line_end) - begin))
