"""Faults that are planted in a store by hand, each of which the checker must find."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.store_history import Left, Noted, Promise
from benchmarks.support.store_left import file_of
from esper.contracts.events import BlueprintSubmitted
from esper.contracts.topics import COMPILATIONS, SUBMITTED
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.postgres import PostgresServer
from esper.testing.servers import RedisServer


@dataclass(frozen=True)
class Scene:
    """Where faults are planted.

    Attributes:
        postgres: The server of the rows.
        database: Its database.
        bucket: The folder of the bytes.
        redis: The bus.
        noted: What callers were told.
    """

    postgres: PostgresServer
    database: str
    bucket: Path
    redis: RedisServer
    noted: Noted

    def run(self, statement: str) -> None:
        """Change rows."""
        self.postgres.run(statement, self.database)


Plant = Callable[[Scene, Left], Awaitable[Promise]]


async def _lost_outcome(scene: Scene, _: Left) -> Promise:
    scene.run(f"DELETE FROM outcomes WHERE decision_id = '{min(scene.noted.outcomes)}'")
    return Promise.LOST


async def _missing_blob(scene: Scene, left: Left) -> Promise:
    file_of(scene.bucket, min(left.kernels)).unlink()
    return Promise.HOLLOW


async def _damaged_blob(scene: Scene, left: Left) -> Promise:
    path = file_of(scene.bucket, max(left.kernels))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    return Promise.HOLLOW


async def _torn_version(scene: Scene, _: Left) -> Promise:
    scene.run(
        "UPDATE blueprints SET version = version + 1 WHERE id IN (SELECT id FROM blueprints ORDER BY version DESC LIMIT 1)"
    )
    return Promise.TORN


async def _missing_report(scene: Scene, left: Left) -> Promise:
    scene.run(f"DELETE FROM validation_reports WHERE kernel_id = '{min(left.kernels)}'")
    return Promise.HALF


async def _lost_event(scene: Scene, left: Left) -> Promise:
    scene.redis.ask(f"XTRIM {SUBMITTED.stream} MAXLEN = {len(left.heard)}")
    return Promise.SILENT


async def _lost_progress(scene: Scene, left: Left) -> Promise:
    scene.redis.ask(f"XTRIM {COMPILATIONS.stream} MAXLEN = {len(left.followed)}")
    return Promise.SILENT


async def _invented_event(scene: Scene, _: Left) -> Promise:
    async with RedisBus(RedisBusConfig(url=scene.redis.url)) as bus:
        await bus.publish(SUBMITTED.stream, BlueprintSubmitted(blueprint_id="sha256:" + "0" * 64))
    return Promise.INVENTED


PLANTS: dict[str, Plant] = {
    "lost_outcome": _lost_outcome,
    "missing_blob": _missing_blob,
    "damaged_blob": _damaged_blob,
    "torn_version": _torn_version,
    "missing_report": _missing_report,
    "lost_event": _lost_event,
    "lost_progress": _lost_progress,
    "invented_event": _invented_event,
}
