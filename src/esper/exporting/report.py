"""What an export says of itself."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """One comparison of the exported model with the original.

    Attributes:
        inputs: What both were run on.
        difference: Largest difference of their outputs, relative to the largest number in the original's or to 1.
    """

    inputs: str
    difference: float


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was checked.

    Attributes:
        format: Name of the format.
        files: Paths of what was written.
        batch: ``any`` where the batch may have any size, otherwise the one size.
        notes: What a reader of the files should know.
        checks: Comparisons; empty where none was asked for.
        tolerance: Largest difference that was allowed.
    """

    format: str
    files: tuple[str, ...]
    batch: str
    notes: tuple[str, ...]
    checks: tuple[Check, ...]
    tolerance: float

    @property
    def difference(self) -> float | None:
        """The largest difference that was measured, or None where nothing was compared."""
        return max((check.difference for check in self.checks), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the report as an object for JSON."""
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**listed, "difference": self.difference, "verified": bool(self.checks)}
