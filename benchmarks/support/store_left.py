"""Reads what is left of a store without asking the store: ``psql``, files on the disk, messages on the bus."""

import asyncio
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

from benchmarks.support.store_history import KernelLeft, Left
from esper.contracts.events import BlueprintSubmitted, CompilationEvent
from esper.contracts.topics import COMPILATIONS, SUBMITTED
from esper.ir import digest_of
from esper.ports import Delivery
from esper.services.oona.codec import Codec, unpacked
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.postgres import PostgresServer

_LAST = "the last"
_LIMIT_S = 60.0
_READERS = count()

WITNESS = """
CREATE TABLE outbox_witness (content bytea NOT NULL);
CREATE FUNCTION outbox_seen() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO outbox_witness VALUES (NEW.content); RETURN NULL; END $$;
CREATE TRIGGER outbox_seen AFTER INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION outbox_seen();
"""
"""Keeps what the outbox announced after the relay has deleted it, in the transaction that announced it."""


async def left_in(server: PostgresServer, database: str, bucket: Path, bus_url: str) -> Left:
    """Return what is there."""

    def rows(query: str) -> list[list[str]]:
        return [line.split("|") for line in server.run(query, database).splitlines()]

    left = Left()
    left.blueprints = {row[0]: (row[1], int(row[2])) for row in rows("SELECT id, name, version FROM blueprints")}
    left.named = {row[0] for row in rows("SELECT DISTINCT blueprint_id FROM blueprint_terms WHERE term NOT LIKE '#%'")}
    left.jobs = {
        row[0]: (row[1], row[2], row[3]) for row in rows("SELECT id, blueprint_id, status, kernel_id FROM compile_jobs")
    }
    kernels = (
        "SELECT k.id, kernel_binary_ref, size_bytes, status, r.kernel_id IS NOT NULL FROM kernels k "
        "LEFT JOIN validation_reports r ON r.kernel_id = k.id"
    )
    left.kernels = {row[0]: KernelLeft(row[1], int(row[2]), row[3], row[4] == "t") for row in rows(kernels)}
    left.outcomes = {row[0] for row in rows("SELECT decision_id FROM outcomes")}
    left.bytes = await asyncio.to_thread(_bytes_in, bucket)
    # What the store announced between the last look at its outbox and its end waits there for the next process.
    for (content,) in rows(
        "SELECT encode(content, 'hex') FROM outbox_witness WHERE content NOT IN (SELECT content FROM outbox)"
    ):
        envelope = unpacked(bytes.fromhex(content))
        body = Codec().open(envelope)
        if isinstance(body, BlueprintSubmitted):
            left.announced[envelope.id] = body.blueprint_id
        elif isinstance(body, CompilationEvent):
            left.told[envelope.id] = body.blueprint_id
    left.heard = await _heard(bus_url, SUBMITTED.stream, BlueprintSubmitted)
    left.followed = await _heard(bus_url, COMPILATIONS.stream, partial(CompilationEvent, status="queued"))
    return left


def waiting_in(server: PostgresServer, database: str) -> int:
    """Return how many announcements have not been relayed."""
    return int(server.run("SELECT count(*) FROM outbox", database))


def file_of(bucket: Path, digest: str) -> Path:
    """Return the file of some bytes."""
    name = digest.removeprefix("sha256:")
    return bucket / "sha256" / name[:2] / name


def _bytes_in(bucket: Path) -> dict[str, int]:
    """Return the size of whatever has the digest that it is named after."""
    found = {}
    for path in (bucket / "sha256").glob("??/*"):
        data = path.read_bytes()
        if digest_of(data) == f"sha256:{path.name}":
            found[f"sha256:{path.name}"] = len(data)
    return found


async def _heard(url: str, stream: str, said: Callable[..., BlueprintSubmitted | CompilationEvent]) -> dict[str, str]:
    """Return the blueprint of each message on a stream, which gets a last one."""
    found: dict[str, str] = {}
    last = f"{_LAST} {next(_READERS)}"
    heard_all = asyncio.Event()

    async def hear(delivery: Delivery) -> None:
        assert isinstance(delivery.body, BlueprintSubmitted | CompilationEvent)
        if delivery.body.blueprint_id == last:
            heard_all.set()
        elif not delivery.body.blueprint_id.startswith(_LAST):
            found[delivery.id] = delivery.body.blueprint_id

    async with RedisBus(RedisBusConfig(url=url, block_s=0.05)) as bus, asyncio.TaskGroup() as tasks:
        tasks.create_task(bus.subscribe(stream, last.replace(" ", "-"), hear, start_from="0"))
        await bus.publish(stream, said(blueprint_id=last))
        async with asyncio.timeout(_LIMIT_S):
            await heard_all.wait()
        await bus.close()
    return found
