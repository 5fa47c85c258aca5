"""Exporting: a grown model as files that other programs read, each held against the model before it is left in place."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.exporting.report import ExportReport as ExportReport
    from esper.exporting.writing import export as export
    from esper.exporting.writing import verify_export as verify_export

_HOME = {
    "ExportReport": "esper.exporting.report",
    "export": "esper.exporting.writing",
    "verify_export": "esper.exporting.writing",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'esper.exporting' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
