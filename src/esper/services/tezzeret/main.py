"""The forge as a service: ``uvicorn esper.services.tezzeret.main:app``, or ``esper serve tezzeret``, which is safer.

Settings come from ``ESPER_TEZZERET_…`` and the section ``[tezzeret]``; they are read when the service starts.
"""

from esper.services.tezzeret.rest.application import create_app
from esper.services.tezzeret.rest.config import TezzeretConfig
from esper.settings import load

app = create_app(lambda: load(TezzeretConfig, "tezzeret"))

__all__ = ["app"]
