"""Blueprints: designs as data become torch modules, and the catalogue of designs that Esper ships.

Importing this package fills the default registry with the catalogue; torch is imported when a kernel is first used.
"""

import importlib
from typing import TYPE_CHECKING

from esper.blueprints import catalog as catalog

if TYPE_CHECKING:
    from esper.blueprints.bodies import register_body as register_body
    from esper.blueprints.dtypes import dtype_named as dtype_named
    from esper.blueprints.kernel import Kernel as Kernel
    from esper.blueprints.kernel import load_kernel as load_kernel
    from esper.blueprints.kernel import pack_kernel as pack_kernel
    from esper.blueprints.kernel import unpack_kernel as unpack_kernel
    from esper.blueprints.module import KernelModule as KernelModule
    from esper.blueprints.weights import initial_state as initial_state

OP_LIBRARY = 1
"""Version of what the operations compute: it grows when a kernel would compute something else than before."""

_HOME = {
    "Kernel": "esper.blueprints.kernel",
    "KernelModule": "esper.blueprints.module",
    "dtype_named": "esper.blueprints.dtypes",
    "initial_state": "esper.blueprints.weights",
    "load_kernel": "esper.blueprints.kernel",
    "pack_kernel": "esper.blueprints.kernel",
    "register_body": "esper.blueprints.bodies",
    "unpack_kernel": "esper.blueprints.kernel",
}

__all__ = [
    "OP_LIBRARY",
    "Kernel",
    "KernelModule",
    "catalog",
    "dtype_named",
    "initial_state",
    "load_kernel",
    "pack_kernel",
    "register_body",
    "unpack_kernel",
]


def __getattr__(name: str) -> object:
    """Import what needs torch when it is first used (PEP 562), so that services without torch can read the catalogue."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'esper.blueprints' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
