"""Kasmina: the execution layer; gives a model slots, joins kernels to them, and takes them out again."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.kasmina.compiling import compile_regions as compile_regions
    from esper.kasmina.folding.fold import fold as fold
    from esper.kasmina.graft import GraftEntry as GraftEntry
    from esper.kasmina.graft import Newborn as Newborn
    from esper.kasmina.graft import detach as detach
    from esper.kasmina.graft import join as join
    from esper.kasmina.graft import restore_topology as restore_topology
    from esper.kasmina.graft import set_active as set_active
    from esper.kasmina.graft import topology as topology
    from esper.kasmina.grafted import Graft as Graft
    from esper.kasmina.health import HealthMeter as HealthMeter
    from esper.kasmina.lifecycle import Seed as Seed
    from esper.kasmina.lifecycle import SeedState as SeedState
    from esper.kasmina.model import MorphableModel as MorphableModel
    from esper.kasmina.placement import Place as Place
    from esper.kasmina.placement import Placement as Placement
    from esper.kasmina.placement import Slot as Slot
    from esper.kasmina.placement import placement_of as placement_of
    from esper.kasmina.planning import Plan as Plan
    from esper.kasmina.planning import plan as plan
    from esper.kasmina.signals.named import SIGNALS as SIGNALS
    from esper.kasmina.signals.named import check_signal as check_signal
    from esper.kasmina.signals.named import signal_named as signal_named
    from esper.kasmina.signals.signal import Signal as Signal
    from esper.kasmina.wrapping import unwrap as unwrap
    from esper.kasmina.wrapping import wrap as wrap

_HOME = {
    "SIGNALS": "esper.kasmina.signals.named",
    "Signal": "esper.kasmina.signals.signal",
    "check_signal": "esper.kasmina.signals.named",
    "signal_named": "esper.kasmina.signals.named",
    "Graft": "esper.kasmina.grafted",
    "GraftEntry": "esper.kasmina.graft",
    "HealthMeter": "esper.kasmina.health",
    "MorphableModel": "esper.kasmina.model",
    "Newborn": "esper.kasmina.graft",
    "Place": "esper.kasmina.placement",
    "Placement": "esper.kasmina.placement",
    "Plan": "esper.kasmina.planning",
    "Seed": "esper.kasmina.lifecycle",
    "SeedState": "esper.kasmina.lifecycle",
    "Slot": "esper.kasmina.placement",
    "compile_regions": "esper.kasmina.compiling",
    "detach": "esper.kasmina.graft",
    "fold": "esper.kasmina.folding.fold",
    "join": "esper.kasmina.graft",
    "placement_of": "esper.kasmina.placement",
    "plan": "esper.kasmina.planning",
    "restore_topology": "esper.kasmina.graft",
    "set_active": "esper.kasmina.graft",
    "topology": "esper.kasmina.graft",
    "unwrap": "esper.kasmina.wrapping",
    "wrap": "esper.kasmina.wrapping",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Import a name when it is first used (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'esper.kasmina' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
