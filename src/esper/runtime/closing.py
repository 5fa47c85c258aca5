"""What is closed at the end of its block."""

from types import TracebackType
from typing import Self


class Closing:
    """Lets ``async with`` close what it opened."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release what is held."""
        raise NotImplementedError
