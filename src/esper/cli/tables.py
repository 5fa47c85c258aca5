"""Tables and ages for a terminal."""

from collections.abc import Sequence

UNKNOWN = "unknown"
NOTHING = "-"


def lines_of(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Return rows as lines with columns of one width.

    Args:
        rows: Cells, the heads first.
        right: Columns of numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def number(value: int | None) -> str:
    """Return a count, or that it is not known."""
    return UNKNOWN if value is None else f"{value:,}"


def age(seconds: float | None) -> str:
    """Return a time span in the unit that fits."""
    if seconds is None:
        return NOTHING
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def cut(text: str, width: int | None) -> str:
    """Return text on one line, and no longer than ``width`` where that is given."""
    line = " ".join(text.split())
    return line if width is None or len(line) <= width else line[: width - 1] + "…"
