"""Services: the parts of Esper that can run on their own; this package re-exports what the specification names."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.services.contracts import SimpleBlueprintContract as SimpleBlueprintContract
    from esper.services.contracts import SimpleCompiledKernelContract as SimpleCompiledKernelContract
    from esper.services.oona_client import OonaClient as OonaClient

_HOME = {
    "OonaClient": "esper.services.oona_client",
    "SimpleBlueprintContract": "esper.services.contracts",
    "SimpleCompiledKernelContract": "esper.services.contracts",
}

__all__ = ["OonaClient", "SimpleBlueprintContract", "SimpleCompiledKernelContract"]


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562), so that no service pays for another."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
