"""Who calls: the holder of a key, or a process of this machine; and whether they call too often."""

import hashlib
from collections import OrderedDict
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import Scope

from esper.errors import Rejected
from esper.ports import Clock
from esper.services.rest.answers import Wait
from esper.services.rest.caller import LOCAL, NOBODY, Caller
from esper.services.rest.config import RestConfig, is_loopback
from esper.services.rest.rates import Rates

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that everybody may read; they tell nothing but whether the service is there."""

_KEY_AGE_S = 5.0
"""How long a key that was found valid is believed to be so; a revoked one opens nothing after that."""
_KEYS_REMEMBERED = 4096


class Keys(Protocol):
    """Knows who holds which key."""

    async def holder(self, token: str) -> Caller | None:
        """Return the holder of a valid key, or None."""
        ...


class Callers:
    """Knows callers by their keys.

    Without a key only processes of this machine may call, and only by a name of this machine: a page in a browser that had
    its name point here, or a proxy that calls for others, is not one of them.

    Args:
        config: Whether keys are needed, and how often one may call.
        keys: The keys.
        clock: Measures rates, and how old knowledge is.
    """

    def __init__(self, config: RestConfig, keys: Keys, clock: Clock) -> None:
        self._config, self._keys, self._clock = config, keys, clock
        self._rates = Rates(config.requests_per_s, config.burst, clock)
        self._refusals = Rates(config.refusals_per_s, int(config.refusals_per_s * 10) + 1, clock)
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()

    async def admitted(self, scope: Scope, headers: Headers) -> Caller:
        """Return who calls.

        Raises:
            Rejected: If they need a key, or come by a way that is not theirs.
            Wait: If they call too often.
        """
        self._check_name(headers)
        caller = await self._caller(scope, headers)
        bucket = peer_of(scope) if caller is NOBODY else caller.name
        if (wait_s := self._rates.take(bucket)) > 0:
            raise Wait(
                "requests come too fast",
                why=f"{self._config.requests_per_s:g} per second are allowed",
                retry_after_s=wait_s,
                code="ESP-4720",
            )
        return caller

    def _check_name(self, headers: Headers) -> None:
        """Refuse a name that is not this machine's own, where its callers need no keys."""
        if self._config.needs_keys:
            return
        name = _host(headers.get("host", ""))
        if not is_loopback(name) or "forwarded" in headers or "x-forwarded-for" in headers:
            raise Rejected(
                "this service answers processes of its own machine only",
                why="the request came by another name, or through a proxy",
                todo="set require_keys=true to serve others",
                code="ESP-7511",
            )

    async def _caller(self, scope: Scope, headers: Headers) -> Caller:
        if scope["path"] in OPEN_PATHS:
            return NOBODY
        peer = peer_of(scope)
        given = headers.get("authorization")
        if given is None:
            if not self._config.needs_keys and is_loopback(peer):
                return LOCAL
            raise _no_key("there is none")
        if (wait_s := self._refusals.wait_s(peer)) > 0:
            raise Wait("too many wrong keys came from this address", retry_after_s=wait_s, code="ESP-4720")
        scheme, _, token = given.partition(" ")
        caller = await self._holder(token.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            self._refusals.take(peer)
            raise _no_key("it is unknown, expired or revoked")
        return caller

    async def _holder(self, token: str) -> Caller | None:
        """Return the holder of a key; valid ones are remembered for seconds, under a digest."""
        digest, now = hashlib.sha256(token.encode("utf-8", "replace")).digest(), self._clock.monotonic_s()
        caller, since = self._known.get(digest, (NOBODY, -_KEY_AGE_S))
        if now - since < _KEY_AGE_S:
            return caller
        self._known.pop(digest, None)
        holder = await self._keys.holder(token)
        if holder is None:
            return None
        caller = holder
        self._known[digest] = caller, now
        if len(self._known) > _KEYS_REMEMBERED:
            self._known.popitem(last=False)
        return caller


def _no_key(why: str) -> Rejected:
    return Rejected(
        "a key is needed", why=why, todo="send Authorization: Bearer <key>; esper keys makes one", code="ESP-7510"
    )


def _host(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def peer_of(scope: Scope) -> str:
    """Return the address that a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
