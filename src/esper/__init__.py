"""Esper: PyTorch models that grow while they train.

```python
import esper

esper.wrap(model)
growth = esper.attach(model, optimizer, validate=validate, every=200, steps=20_000, budget="+30%")
for x, y in batches:
    ...
    for event in growth.step(loss):
        print(event)
```
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esper.assembly import attach as attach
    from esper.exporting import export as export
    from esper.ir import Layout as Layout
    from esper.ir import blueprint as blueprint
    from esper.kasmina import Slot as Slot
    from esper.kasmina import compile_regions as compile  # noqa: F401
    from esper.kasmina import fold as fold
    from esper.kasmina import plan as plan
    from esper.kasmina import unwrap as unwrap
    from esper.kasmina import wrap as wrap
    from esper.services.tolaria.budget import Budget as Budget
    from esper.services.tolaria.checkpoint import from_pretrained as from_pretrained
    from esper.services.tolaria.checkpoint import save_pretrained as save_pretrained
    from esper.services.tolaria.config import GovernorConfig as GovernorConfig
    from esper.services.tolaria.growth import Growth as Growth
    from esper.services.tolaria.newborn_rate import NewbornRate as NewbornRate
    from esper.services.tolaria.shrinking import Rent as Rent
    from esper.services.tolaria.trainer import TolariaTrainer as Trainer  # noqa: F401
    from esper.services.tolaria.trainer import TrainerConfig as TrainerConfig

_HOME = {
    "Budget": "esper.services.tolaria.budget",
    "Layout": "esper.ir",
    "GovernorConfig": "esper.services.tolaria.config",
    "Growth": "esper.services.tolaria.growth",
    "NewbornRate": "esper.services.tolaria.newborn_rate",
    "Rent": "esper.services.tolaria.shrinking",
    "Slot": "esper.kasmina",
    "Trainer": "esper.services.tolaria.trainer:TolariaTrainer",
    "TrainerConfig": "esper.services.tolaria.trainer",
    "attach": "esper.assembly",
    "blueprint": "esper.ir",
    "export": "esper.exporting",
    "fold": "esper.kasmina",
    "from_pretrained": "esper.services.tolaria.checkpoint",
    "compile": "esper.kasmina:compile_regions",
    "plan": "esper.kasmina",
    "save_pretrained": "esper.services.tolaria.checkpoint",
    "unwrap": "esper.kasmina",
    "wrap": "esper.kasmina",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562), so that ``import esper`` stays cheap."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    module, _, other = home.partition(":")
    return getattr(importlib.import_module(module), other or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
