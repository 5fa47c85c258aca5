"""The artifact store over HTTP, with the same methods as the one in process."""

import ssl
from types import TracebackType
from typing import Self

from pydantic import SecretStr

from esper.errors import StoreUnavailable
from esper.ports import Clock
from esper.services.clients.blueprint_calls import BlueprintCalls
from esper.services.clients.circuit_breaker import CircuitBreaker
from esper.services.clients.job_calls import JobCalls
from esper.services.clients.kernel_calls import KernelCalls
from esper.services.clients.messages import TransportConfig
from esper.services.clients.operation_calls import OperationCalls
from esper.services.clients.transport import Transport


class UrzaClient(BlueprintCalls, KernelCalls, JobCalls, OperationCalls):
    """Implements `esper.ports.Library` and `esper.ports.CompileQueue` over HTTP.

    ```python
    async with UrzaClient("http://localhost:8000") as store:
        kernels = await store.search_kernels(tags=["attention"], status="validated", min_performance=1000.0)
    ```

    Every method raises what the store raises, and beside it StoreUnavailable, DeadlineExceeded or CircuitOpen where it does
    not answer.

    Args:
        base_url: Where it is, such as ``http://localhost:8000``.
        key: API key; without one only a store on this machine answers.
        config: Limits.
        breaker: Shared with other clients of the same store.
        clock: Measures the breaker.
        tls: Trust and certificates, where the system's own do not do.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: SecretStr | str | None = None,
        config: TransportConfig | None = None,
        breaker: CircuitBreaker | None = None,
        clock: Clock | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        secret = SecretStr(key) if isinstance(key, str) else key
        self.transport = Transport(
            base_url, key=secret, config=config, unavailable=StoreUnavailable, breaker=breaker, clock=clock, tls=tls
        )

    async def __aenter__(self) -> Self:
        await self.transport.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.transport.__aexit__(kind, error, trace)


__all__ = ["UrzaClient"]
