"""Tamiyo: the controller; watches the health of each place and decides where, when and what to grow."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.services.tamiyo.analyzer import HealthSignalAnalyzer as HealthSignalAnalyzer

_HOME = {
    "HealthSignalAnalyzer": "esper.services.tamiyo.analyzer",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'esper.services.tamiyo' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
