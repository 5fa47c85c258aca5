"""The folder of a run: what is written there, and that nobody waits for it."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from esper.runtime.background import BackgroundLoop, Bridge
from esper.services.tolaria.folder import RunFolder


async def _answer() -> int:
    return 42


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only POSIX has named pipes")
def test_a_disk_that_stalls_holds_up_neither_training_nor_services(tmp_path: Path) -> None:
    folder, loop = RunFolder(tmp_path, "run"), BackgroundLoop()
    stalled = folder.manifest.with_suffix(".tmp")
    os.mkfifo(stalled)  # opening it to write lasts until somebody reads
    bridge = Bridge(loop)
    try:
        bridge.post(folder.written({"step": 1}))
        assert bridge.wait(bridge.submit(_answer()), limit_s=10) == 42
    finally:
        assert json.loads(stalled.read_text(encoding="utf-8"))["step"] == 1
        bridge.flush()
        loop.close()


async def test_manifests_are_written_in_the_order_asked_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "run")
    await asyncio.gather(*(folder.written({"step": step}) for step in range(20)))
    assert json.loads(folder.manifest.read_text(encoding="utf-8")) == {"version": 1, "step": 19}
