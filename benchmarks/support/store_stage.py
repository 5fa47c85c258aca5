"""One chaos schedule on a store of real processes: ``python -m benchmarks.support.store_stage SEED`` plays one again.

The seed draws the moments; in what moment of the work a kill strikes is the machine's own dice.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, Protocol, Self

from benchmarks.support.store_history import Left, Noted, breaches
from benchmarks.support.store_left import WITNESS, left_in, waiting_in
from benchmarks.support.store_plants import PLANTS, Scene
from benchmarks.support.store_writers import Writers
from esper.errors import StoreUnavailable
from esper.services.urza.database import engine_at, prepare
from esper.testing.postgres import PostgresServer
from esper.testing.s3 import ACCESS_KEY_ID, SECRET_ACCESS_KEY, S3FolderServer
from esper.testing.servers import RedisServer
from esper.testing.store_process import StoreProcess

STRIKES = 10
RECOVERY_LIMIT_S = 90.0
GRACE_S = 3.0
"""Shorter than some calls take: garbage is collected all the while, and a writer may find what it uploaded gone."""
_WRITES_BETWEEN = 10
"""Acknowledged writes after which everything works again, and the next kill may come."""
_LONGEST_WAIT_S, _LONGEST_OUTAGE_S = 0.4, 0.5
_TWO_AT_ONCE = 0.15


class Victim(StrEnum):
    """What is killed."""

    SERVICE = "service"
    POSTGRES = "postgres"
    S3 = "s3"


class Killable(Protocol):
    """A process that comes back with what it acknowledged."""

    def kill(self) -> None:
        """End it at once."""
        ...

    def start(self) -> None:
        """Start it again."""
        ...


@dataclass(frozen=True)
class Strike:
    """One kill, or two at once.

    Attributes:
        victims: Who is killed, in the order in which they are started again.
        after_s: When, counted from the moment in which everything works again.
        outage_s: How long until they are started again.
    """

    victims: tuple[Victim, ...]
    after_s: float
    outage_s: float


@dataclass
class Outcome:
    """What came of a schedule.

    Attributes:
        seed: Its seed.
        moments: In how many somebody was killed.
        strikes: Who was killed, and how often.
        counts: What was written, refused and left.
        breaches: Broken promises.
        planted: Whether each planted fault was found; nothing where none was planted.
        crashes: What went wrong with the processes themselves.
        took_s: How long it took.
    """

    seed: int
    moments: int = 0
    strikes: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    breaches: list[list[str]] = field(default_factory=list)
    planted: dict[str, bool] = field(default_factory=dict)
    crashes: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether every promise was kept, and everything came back."""
        return not self.breaches and not self.crashes


def plan(seed: int, strikes: int = STRIKES) -> list[Strike]:
    """Return the kills of a schedule."""
    dice = Random(seed)
    order = (Victim.POSTGRES, Victim.S3, Victim.SERVICE)  # the service needs the others to start
    found = []
    for _ in range(strikes):
        chosen = dice.sample(order, 2 if dice.random() < _TWO_AT_ONCE else 1)
        victims = tuple(victim for victim in order if victim in chosen)
        found.append(Strike(victims, dice.uniform(0, _LONGEST_WAIT_S), dice.uniform(0, _LONGEST_OUTAGE_S)))
    return found


async def play(seed: int, folder: Path, *, strikes: int = STRIKES, plants: bool = False) -> Outcome:
    """Play one schedule, and return what came of it.

    Args:
        seed: Draws it.
        folder: For everything that is written.
        strikes: Number of kills.
        plants: Whether faults are planted afterwards, which must be found.
    """
    outcome, began = Outcome(seed), monotonic()
    with ExitStack() as stack:
        stage = await Stage.set(stack, folder, seed)
        try:
            await stage.play(plan(seed, strikes))
        except* (RuntimeError, TimeoutError, StoreUnavailable) as errors:
            outcome.crashes = [f"{error!r}; the service said: {stage.service.log}" for error in errors.exceptions]
        outcome.moments, outcome.strikes = stage.moments, dict(stage.struck)
        if outcome.crashes:  # what is not at rest cannot be judged
            return outcome
        noted, left = stage.writers.noted, await stage.left()
        outcome.breaches = [list(breach) for breach in breaches(noted, left)]
        outcome.counts = _counted(noted, left)
        if plants:
            scene = Scene(stage.postgres, stage.database, stage.bucket, stage.redis, noted)
            for name, plant in PLANTS.items():
                before = breaches(noted, left)
                promise = await plant(scene, left)
                left = await stage.left()
                new = set(breaches(noted, left)) - set(before)
                outcome.planted[name] = any(breach.promise is promise for breach in new)
    outcome.took_s = monotonic() - began
    return outcome


class Stage:
    """Everything that takes part in one schedule; the bus is not struck, it has a judge of its own."""

    def __init__(
        self, postgres: PostgresServer, s3: S3FolderServer, redis: RedisServer, service: StoreProcess, seed: int
    ) -> None:
        self.postgres, self.redis, self.service = postgres, redis, service
        self.writers = Writers(service.url, seed)
        self.moments = 0
        self.struck: Counter[str] = Counter()
        self.database, self.bucket = "", Path()
        self._parts: dict[Victim, Killable] = {
            Victim.POSTGRES: postgres, Victim.S3: s3, Victim.SERVICE: service,
        }  # fmt: skip

    @classmethod
    async def set(cls, stack: ExitStack, folder: Path, seed: int) -> Self:
        """Start every part; the stack ends it."""
        postgres = stack.enter_context(PostgresServer())
        s3 = stack.enter_context(S3FolderServer(_made(folder / "s3")))
        redis = stack.enter_context(RedisServer(_made(folder / "redis")))
        database, bucket = postgres.new_database(), s3.new_bucket()
        await _prepared(postgres, database)
        settings = {
            "ESPER_URZA_DATABASE_URL": postgres.url(database),
            "ESPER_URZA_S3_BUCKET": bucket,
            "ESPER_URZA_S3_ENDPOINT": s3.url,
            "ESPER_URZA_S3_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "ESPER_URZA_S3_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
            "ESPER_URZA_BUS_URL": redis.url,
            "ESPER_URZA_REQUESTS_PER_S": "0",
            "ESPER_URZA_COLLECT_EVERY_S": "0.5",
            "ESPER_URZA_RETENTION": json.dumps({"grace_s": GRACE_S}),
        }
        service = stack.enter_context(StoreProcess(_made(folder / "service"), settings=settings))
        stage = cls(postgres, s3, redis, service, seed)
        stage.database, stage.bucket = database, s3.path(bucket)
        return stage

    async def play(self, strikes: Sequence[Strike]) -> None:
        """Let callers write, strike, heal, and wait until everything that was announced is on the bus.

        Raises:
            TimeoutError: If something does not work again.
            RuntimeError: If the service ends by itself, or not in good order.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.writers.run())
            for strike in strikes:
                await self._works()
                await asyncio.sleep(strike.after_s)
                await self._strike(strike)
            await self._works()
            self.writers.close()
        async with asyncio.timeout(RECOVERY_LIMIT_S):
            while await asyncio.to_thread(waiting_in, self.postgres, self.database):  # noqa: ASYNC110 - the relay tells nobody
                await asyncio.sleep(0.1)
        code = await asyncio.to_thread(self.service.stop)
        if code:
            raise RuntimeError(f"the service ended with {code}")

    async def left(self) -> Left:
        """Return what is there."""
        return await left_in(self.postgres, self.database, self.bucket, self.redis.url)

    async def _works(self) -> None:
        """Wait until some writes were acknowledged again."""
        enough = self.writers.noted.acknowledged + _WRITES_BETWEEN
        async with asyncio.timeout(RECOVERY_LIMIT_S):
            while self.writers.noted.acknowledged < enough:  # noqa: ASYNC110 - callers tell nobody
                await asyncio.sleep(0.005)

    async def _strike(self, strike: Strike) -> None:
        if self.service.has_ended:
            raise RuntimeError("the service ended by itself")
        self.moments += 1
        for victim in strike.victims:
            self._parts[victim].kill()
            self.struck[victim] += 1
        await asyncio.sleep(strike.outage_s)
        for victim in strike.victims:
            await asyncio.to_thread(self._parts[victim].start)


async def _prepared(postgres: PostgresServer, database: str) -> None:
    engine = engine_at(postgres.url(database))
    try:
        await prepare(engine)
    finally:
        await engine.dispose()
    postgres.run(WITNESS, database)


def _counted(noted: Noted, left: Left) -> dict[str, int]:
    return {
        "writes_acknowledged": noted.acknowledged,
        "writes_refused": noted.refused,
        "blueprints": len(left.blueprints),
        "kernels": len(left.kernels),
        "outcomes": len(left.outcomes),
        "blobs": len(left.bytes),
        "events": len(left.heard),
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def outcome_of(found: dict[str, Any]) -> Outcome:
    """Return the outcome that a stage printed."""
    return Outcome(**found)


def main() -> None:
    """Play one schedule and print its outcome as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.support.store_stage")
    parser.add_argument("seed", type=int)
    parser.add_argument("--strikes", type=int, default=STRIKES)
    parser.add_argument("--plants", action="store_true", help="plant faults afterwards, to see that they are found")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = asyncio.run(play(given.seed, Path(folder), strikes=given.strikes, plants=given.plants))
    print(json.dumps(asdict(outcome)))


if __name__ == "__main__":
    main()
