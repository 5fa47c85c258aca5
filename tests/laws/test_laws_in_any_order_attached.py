"""All laws at once for an attached run, whatever the order in which it grows, is judged, goes wrong, is undone and resumed."""

from pathlib import Path

import pytest

from esper.testing.zoo import ZOO
from tests.laws.any_order import COMBINATIONS, explore
from tests.laws.attached_order import AttachedRun

SOME = ("residual_mlp", "resnet", "transformer", "dropout")


def explore_host(host: str, root: Path, *, examples: int, steps: int) -> None:
    combination = COMBINATIONS[list(ZOO).index(host) % len(COMBINATIONS)]
    explore(lambda: AttachedRun(host, combination, root), examples=examples, steps=steps)


@pytest.mark.parametrize("host", SOME)
def test_the_laws_hold_in_any_order_of_an_attached_run(host: str, root: Path) -> None:
    explore_host(host, root, examples=3, steps=10)


@pytest.mark.slow
@pytest.mark.parametrize("host", ZOO)
def test_the_laws_hold_in_any_order_of_an_attached_run_of_every_host(host: str, root: Path) -> None:
    explore_host(host, root, examples=8, steps=14)
