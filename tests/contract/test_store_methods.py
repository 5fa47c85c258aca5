"""The store in process and its client have the same methods, and the suites that both pass call every one of them."""

import inspect
import re
from types import ModuleType

import pytest

from esper.services.clients import UrzaClient
from esper.services.urza.kernel_manager import KernelManager
from esper.testing import library_contract, questions, store_contract

SUITES = (library_contract, store_contract, questions)
OTHERWISE = {"stream"}
"""Over HTTP it opens a block, because there is a connection to give back."""


def methods(kind: type) -> dict[str, str]:
    """Return the public methods of a class, with how each is called."""
    found = inspect.getmembers(kind, inspect.isfunction)
    return {
        name: f"{inspect.iscoroutinefunction(method)} {inspect.signature(method)}"
        for name, method in found
        if not name.startswith("_")
    }


def differing(one: type, other: type) -> set[str]:
    """Return the names of methods that both classes have and that are called in different ways."""
    here, there = methods(one), methods(other)
    return {name for name in here.keys() & there.keys() if here[name] != there[name]}


def uncalled(names: set[str], *suites: ModuleType) -> set[str]:
    """Return those of some methods that no suite calls."""
    text = "".join(map(inspect.getsource, suites))
    return {name for name in names if not re.search(rf"\blibrary\.{name}\(", text)}


def test_what_both_sides_have_is_called_alike() -> None:
    assert differing(KernelManager, UrzaClient) == OTHERWISE


def test_the_suites_call_every_method_that_both_sides_have() -> None:
    both = methods(KernelManager).keys() & methods(UrzaClient).keys()
    assert len(both) > 30
    assert uncalled(set(both), *SUITES) == set()


@pytest.mark.parametrize("fault", ["another default", "not awaited", "not called"])
def test_a_difference_would_be_seen(fault: str) -> None:
    class Longer(KernelManager):
        async def get_descendants(self, blueprint_id: str, *, limit: int = 7) -> list[object]:  # type: ignore[override]
            return []

    class Plain(KernelManager):
        def forms(self, kernel_id: str) -> list[object]:  # type: ignore[override]
            return []

    if fault == "not called":
        assert uncalled({"claim", "nobody_asks_this"}, *SUITES) == {"nobody_asks_this"}
    else:
        kind, name = (Longer, "get_descendants") if fault == "another default" else (Plain, "forms")
        assert differing(kind, UrzaClient) == OTHERWISE | {name}
