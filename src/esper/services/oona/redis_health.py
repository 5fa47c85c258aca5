"""Whether a Redis takes messages now, and how it stands."""

import time
from collections.abc import Mapping
from typing import cast

from esper.errors import ConfigError, EsperError, Unavailable
from esper.ports import BusHealth
from esper.services.oona.redis_link import Command, Link


async def health_of(link: Link) -> BusHealth:
    """Return how every server that holds keys stands.

    Each is asked to append to a stream that is not there, and not to make it: a replica, a server without memory, one that
    cannot write to its disk or has too few replicas refuse that as they refuse a message.

    Raises:
        ConfigError: If this user may not ask.
    """
    began = time.perf_counter()
    try:
        answers = await link.ask_each(_questions)
        answered_s = time.perf_counter() - began
        lengths = [cast("int", await link.ask("XLEN", key)) for key in await link.keys("stream")]
    except Unavailable as error:
        return BusHealth(False, str(error), "Redis", time.perf_counter() - began)
    for refused in (answer for its in answers for answer in its if isinstance(answer, ConfigError)):
        raise refused
    whys = [str(probed) for probed, *_ in answers if isinstance(probed, EsperError)]
    facts = [_facts(told) for _, *told in answers]
    limits = [cast("int", fact["maxmemory"]) for fact in facts]
    return BusHealth(
        usable=not whys,
        why="; ".join(whys),
        server=", ".join(map(_server, facts)),
        answered_s=answered_s,
        streams=len(lengths),
        messages=sum(lengths),
        used_bytes=sum(cast("int", fact["used_memory"]) for fact in facts),
        limit_bytes=sum(limits) if all(limits) else None,
    )


def _questions(key: str) -> list[Command]:
    return [
        ("XADD", key, "NOMKSTREAM", "*", "probe", "1"),
        *(("INFO", part) for part in ("server", "memory", "replication")),
    ]


def _facts(told: list[object]) -> dict[str, object]:
    facts: dict[str, object] = {}
    for part in told:
        if isinstance(part, EsperError):  # a server that loads its data refuses these, too
            raise part
        facts |= cast("Mapping[str, object]", part)
    return facts


def _server(facts: Mapping[str, object]) -> str:
    valkey = facts.get("valkey_version")
    name = f"Valkey {valkey}" if valkey else f"Redis {facts['redis_version']}"
    return f"{name} ({'replica' if facts['role'] == 'slave' else facts['role']})"
