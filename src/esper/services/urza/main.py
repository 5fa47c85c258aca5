"""The artifact store as a service: ``uvicorn esper.services.urza.main:app``, or ``esper serve urza``, which is safer.

Settings come from ``ESPER_URZA_…`` and the section ``[urza]``; they are read when the service starts.
"""

from esper.services.urza.rest.application import create_app
from esper.services.urza.rest.config import UrzaConfig
from esper.settings import load

app = create_app(lambda: load(UrzaConfig, "urza"))

__all__ = ["app"]
