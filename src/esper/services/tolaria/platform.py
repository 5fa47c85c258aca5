"""What a run works with."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from esper.ports import Advisor, Library, MessageBus
from esper.runtime.background import Bridge
from esper.services.tolaria.control import Control, NoControl
from esper.services.tolaria.folder import RunFolder
from esper.services.tolaria.kernels import KernelShelf


@dataclass(frozen=True)
class Platform:
    """The services that a run works with, already started by the composition root.

    Attributes:
        bridge: Way to their loop.
        library: Blueprints and kernels.
        bus: Where health, decisions and outcomes go.
        advisor: The controller.
        counts: Returns what was counted from the messages so far, also after the end.
        running: Ends when the services end; with their error where they failed.
        close: Ends them, and waits for that.
        let_go: Has them end, and waits for nothing: the collector calls it, on whichever thread it happens to run.
        shared: A bus that other processes are on, too, and decisions for the run may come over; or None.
        announced: Whether the controller tells the bus itself what it decides; otherwise the run does.
    """

    bridge: Bridge
    library: Library
    bus: MessageBus
    advisor: Advisor
    counts: Callable[[], dict[str, dict[str, int]]]
    running: Future[None]
    close: Callable[[], None]
    let_go: Callable[[], None]
    shared: MessageBus | None = None
    announced: bool = False


@dataclass(frozen=True)
class Parts:
    """The platform, and what belongs to this run alone.

    Attributes:
        platform: The services.
        shelf: Kernels that were asked for.
        folder: Where the run writes.
        control: What grafts are held against beside the run's own past.
    """

    platform: Platform
    shelf: KernelShelf
    folder: RunFolder
    control: Control = field(default_factory=NoControl)
