"""Faults in a text, as compilers show them: the place, the line, and a caret under it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.ir.diagnosis import Fault

_WIDTH = 100
"""Letters of a line that are shown; longer ones are cut on both sides of the fault."""


def lines_about(fault: "Fault", name: str, text: str) -> list[str]:
    """Return a fault as lines.

    Args:
        fault: The fault.
        name: Of the file.
        text: What is in it.
    """
    finding = fault.finding
    why = f": {finding.why}" if finding.why else ""
    told = f"{name}:{fault.line}:{fault.column}: {finding.severity}: {finding.what}{why}"
    source = text.split("\n")[fault.line - 1].rstrip("\r").replace("\t", " ")
    start = max(0, min(fault.column - 1 - _WIDTH // 3, len(source) - _WIDTH))
    shown, at = source[start : start + _WIDTH], fault.column - 1 - start
    gutter = " " * len(str(fault.line))
    carets = "^" * max(1, min(fault.length, len(shown) - at))
    lines = [told, f" {fault.line} | {shown}", f" {gutter} | {' ' * at}{carets}"]
    return [*lines, f" {gutter} = {finding.todo}"] if finding.todo else lines


def fault_to_json(fault: "Fault") -> dict[str, object]:
    """Return a fault as an object for JSON."""
    finding = fault.finding
    return {
        "path": finding.path, "line": fault.line, "column": fault.column, "severity": str(finding.severity),
        "rule": finding.rule, "what": finding.what, "why": finding.why, "todo": finding.todo,
    }  # fmt: skip
