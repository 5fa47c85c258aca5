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
    from esper.ir import blueprint as blueprint

_HOME = {
    "blueprint": "esper.ir",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562), so that ``import esper`` stays cheap."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'esper' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
