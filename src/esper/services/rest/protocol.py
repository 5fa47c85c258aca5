"""Connections: limits on the heads of requests, and answers that leave in one piece."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from esper.services.rest.config import RestConfig

_LARGE = 1 << 16
"""So many bytes are sent at once; waiting for more would only keep them in memory."""


class Joined:
    """A transport that sends what one turn of the loop writes at once.

    The server writes the head of an answer and its body one after the other. Each would be a call into the kernel, and would
    wake the reader, who finds half an answer.

    Args:
        transport: What is behind it; whatever is not about writing is left to it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held: list[bytes] = []
        self._held_bytes = 0

    def write(self, data: bytes) -> None:
        """Send bytes when this turn of the loop is over, or now if they are many."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= _LARGE:
            self._flush()

    def close(self) -> None:
        """Send what is held, then close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self._transport.is_closing():
            self._transport.writelines(held)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def patient(config: RestConfig) -> type[asyncio.Protocol]:
    """Return the protocol of connections that may not keep the server waiting for the head of a request.

    uvicorn itself sets no limit to how long or how large a head may be.
    """

    class PatientProtocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(Joined(transport))  # type: ignore[arg-type]
            self._head_bytes, self._is_in_head = 0, True
            self._head_timer: asyncio.TimerHandle | None = None
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._is_in_head = False
            self._watch()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head_bytes, self._is_in_head = 0, True

        def on_url(self, url: bytes) -> None:
            self._weigh(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._weigh(len(name) + len(value))
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            self._watch()
            super().on_headers_complete()

        def _weigh(self, length: int) -> None:
            self._head_bytes += length
            if self._head_bytes > config.max_header_bytes:
                raise ValueError("the head of the request is too large")

        def _watch(self) -> None:
            """Measure the time while a head is unfinished; most come whole, and need no timer."""
            if self._is_in_head and self._head_timer is None:
                self._head_timer = asyncio.get_running_loop().call_later(config.header_limit_s, self._give_up)
            elif not self._is_in_head and self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            if self.transport is not None and not self.transport.is_closing():
                self.transport.close()

    return PatientProtocol
