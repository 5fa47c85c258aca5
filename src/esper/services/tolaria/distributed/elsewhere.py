"""What a rank has that does not lead: no services, no loop, no files."""

from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from esper.errors import Unavailable
from esper.ports import Advisor, Library, MessageBus
from esper.runtime.background import BackgroundLoop, Bridge
from esper.services.tolaria.platform import Platform

Result = TypeVar("Result")


class NoBridge(Bridge):
    """A bridge that leads nowhere: what is handed over is dropped, as rank 0 hands over the same."""

    def __init__(self) -> None:
        super().__init__(cast(BackgroundLoop, Elsewhere()))

    def submit(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Drop the work; its result never comes."""
        work.close()
        return Future()

    def post(self, work: Coroutine[Any, Any, object], *, droppable: bool = False) -> bool:
        """Drop the work."""
        work.close()
        return False

    def flush(self, *, limit_s: float = 10.0) -> None:
        """Return at once."""


class Elsewhere:
    """Stands for a service that rank 0 runs.

    Raises:
        Unavailable: Whatever is asked of it.
    """

    def __getattr__(self, name: str) -> Any:
        raise Unavailable(f"{name} of a service", why="rank 0 runs the services", todo="ask there")


def platform_elsewhere() -> Platform:
    """Return the platform of a rank that does not lead."""
    return Platform(
        bridge=NoBridge(), library=cast(Library, Elsewhere()), bus=cast(MessageBus, Elsewhere()),
        advisor=cast(Advisor, Elsewhere()), counts=dict, running=Future(), close=lambda: None,
        let_go=lambda: None,
    )  # fmt: skip
