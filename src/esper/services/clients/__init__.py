"""Clients of the services over HTTP."""

from esper.services.clients.circuit_breaker import CircuitBreaker
from esper.services.clients.messages import TransportConfig
from esper.services.clients.transport import Transport
from esper.services.clients.urza_client import UrzaClient

__all__ = ["CircuitBreaker", "Transport", "TransportConfig", "UrzaClient"]
