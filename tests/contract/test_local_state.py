from pathlib import Path

import pytest

from esper.services.oona.local_state import LocalState
from esper.testing.state_contract import StateContract


class TestLocalState(StateContract):
    @pytest.fixture
    def state(self, tmp_path: Path) -> LocalState:
        return LocalState(tmp_path / "state")


async def test_state_survives_a_restart(tmp_path: Path) -> None:
    await LocalState(tmp_path).put("bandit", b"arms")
    assert await LocalState(tmp_path).get("bandit") == b"arms"
