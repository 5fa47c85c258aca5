"""A run that nobody closes ends its services where it is collected, whichever thread the collector happens to run on."""

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from esper.services.tolaria.growth import Growth
from esper.services.tolaria.platform import Platform
from esper.testing.zoo import ZOO
from tests.laws.training import Training

LIMIT_S = 5.0
"""Services end within a second or two; what waits for itself ends after 10 s, when patience does."""


def here(_: Platform) -> None:
    gc.collect()


def on_the_loop(platform: Platform) -> None:
    async def collect() -> None:
        gc.collect()

    platform.bridge.submit(collect())


def in_a_thread_of_the_loop(platform: Platform) -> None:
    async def collect() -> None:
        await asyncio.to_thread(gc.collect)

    platform.bridge.submit(collect())


def in_a_transaction(platform: Platform) -> None:
    library: Any = platform.library
    platform.bridge.submit(library._library.database.apply(lambda _: gc.collect()))


@pytest.mark.parametrize("collect", [here, on_the_loop, in_a_thread_of_the_loop, in_a_transaction])
def test_a_run_that_is_collected_ends_its_services(collect: Callable[[Platform], None], tmp_path: Path) -> None:
    gc.collect()
    gc.freeze()  # what other tests left takes the collector seconds
    gc.disable()
    platform = left_behind(tmp_path)
    try:
        assert not platform.running.done()
        until = time.monotonic() + LIMIT_S
        while not platform.running.done() and time.monotonic() < until:
            collect(platform)  # once nothing that is under way refers to the run any more
            wait([platform.running], timeout=0.2)
        assert platform.running.done()
    finally:
        gc.enable()
        gc.unfreeze()
        platform.close()


def left_behind(folder: Path) -> Platform:
    """Start a run, forget it in a cycle as an exception's frames do, and return what it worked with."""
    training = Training(ZOO["mlp"], ("adamw", "lambda"))
    growth = training.attach(folder, late="wait")
    training.train(4, growth)
    growth.around = growth  # type: ignore[attr-defined]
    assert isinstance(growth, Growth)
    return growth._parts.platform


def test_a_run_that_nobody_closes_is_closed_when_the_interpreter_ends(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert "the services have ended" in ended.stdout


PROGRAM = """
import pathlib, sys
from tests.laws.training import Training
from esper.testing.zoo import ZOO
training = Training(ZOO["mlp"], ("adamw", "lambda"))
growth = training.attach(pathlib.Path(sys.argv[1]), late="wait")
training.train(4, growth)
growth._parts.platform.running.add_done_callback(lambda _: print("the services have ended", flush=True))
"""
