"""Kernels of a store over HTTP whose bytes stay on this machine."""

from collections.abc import Awaitable, Callable

from esper.contracts.kernel import KernelStatus
from esper.errors import KernelRejected
from esper.services.clients.urza_client import UrzaClient

Fetch = Callable[[str], Awaitable[bytes]]
Keep = Callable[[str, Fetch], Awaitable[bytes]]
"""Returns the bytes of a content address, fetched by the function that is given where they are not kept yet."""


class KeptKernels:
    """Reads kernels, and asks the store each time whether they may be used still, but for their bytes only once.

    Args:
        store: Where kernels come from.
        keep: Keeps bytes, such as `esper.services.urza.kernel_manager.PersistentKernelCache.get`.
    """

    def __init__(self, store: UrzaClient, keep: Keep) -> None:
        self._store, self._keep = store, keep

    async def read(self, kernel_id: str) -> bytes:
        """Return the bytes of a validated kernel, digest verified.

        Raises:
            NotFound: If there is no such kernel.
            KernelRejected: If it is not validated, or not any more.
            StoreUnavailable: If the store does not answer, also where the bytes are here.
        """
        status = (await self._store.get_kernel(kernel_id)).status
        if status is not KernelStatus.VALIDATED:
            raise KernelRejected(f"kernel {kernel_id[:19]} may not be grafted", why=f"it is {status}")
        return await self._keep(kernel_id, self._store.read)


__all__ = ["Fetch", "Keep", "KeptKernels"]
