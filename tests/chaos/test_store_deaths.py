"""The store, PostgreSQL and the S3 server are killed under load: what was acknowledged is there, whole, and announced."""

from pathlib import Path

import pytest

from benchmarks.support.store_plants import PLANTS
from benchmarks.support.store_stage import STRIKES, play


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_nothing_acknowledged_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    outcome = await play(4711, tmp_path, plants=True)
    assert outcome.breaches == []
    assert outcome.crashes == []
    assert outcome.moments == STRIKES
    assert outcome.planted == dict.fromkeys(PLANTS, True), "the checker misses a fault that was planted"
