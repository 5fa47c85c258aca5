"""A running store for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.urza.service import Service, running
from tests.integration.urza.strangers import Target, target


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(tmp_path) as service:
        yield service


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Target]:
    async with target(tmp_path) as store:
        yield store
