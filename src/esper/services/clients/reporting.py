"""Brings what grafts brought to the artifact store."""

import asyncio

from esper.contracts.adaptation import Outcome, Verdict
from esper.contracts.topics import OUTCOMES
from esper.errors import BusUnavailable, Unavailable
from esper.ports import Delivery, Library, MessageBus
from esper.telemetry.logs import get_logger

GROUP = "library"

_PAUSE_S = 1.0

_log = get_logger("clients.reporting")


class Reporter:
    """Reports each outcome on a bus to the library, in order, and acknowledges it once it is stored.

    While the library is away outcomes wait on the bus, and with its journal over the end of the process: none is lost.

    Args:
        bus: Where outcomes are published.
        library: Where they are kept.

    Attributes:
        outages: How often the library did not take one.
    """

    def __init__(self, bus: MessageBus, library: Library) -> None:
        self.outages = 0
        self._bus, self._library = bus, library

    async def run(self) -> None:
        """Report until the bus is closed."""
        try:
            await self._bus.subscribe(OUTCOMES.stream, GROUP, self._report, start_from="0")
        except BusUnavailable:
            _log.info("stream_ended", topic=OUTCOMES.stream)

    async def _report(self, delivery: Delivery) -> None:
        outcome = delivery.body
        assert isinstance(outcome, Outcome)
        if outcome.verdict is Verdict.CANCELLED:  # a decision that was refused: there was no graft
            return
        while True:
            try:
                await self._library.report(outcome)
                return
            except Unavailable as error:
                self.outages += 1
                _log.warning("outcome_not_stored", decision_id=outcome.decision_id, why=str(error))
                await asyncio.sleep(_PAUSE_S)


__all__ = ["Reporter"]
