"""Contracts: the records that cross a process border, one definition each, without torch and without I/O."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.contracts.adaptation import AdaptationDecision as AdaptationDecision
    from esper.contracts.adaptation import AdaptationSignal as AdaptationSignal
    from esper.contracts.adaptation import SystemStatePacket as SystemStatePacket
    from esper.contracts.health import HealthSignal as HealthSignal
    from esper.contracts.kernel import CompiledKernelArtifact as CompiledKernelArtifact

_HOME = {
    "AdaptationDecision": "esper.contracts.adaptation",
    "AdaptationSignal": "esper.contracts.adaptation",
    "CompiledKernelArtifact": "esper.contracts.kernel",
    "HealthSignal": "esper.contracts.health",
    "SystemStatePacket": "esper.contracts.adaptation",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562), so that a part pays for the contracts that it uses alone."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'esper.contracts' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
