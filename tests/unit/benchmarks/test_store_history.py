"""A sound store breaks no promise; each planted fault breaks the one that it should, and is named."""

from collections.abc import Callable

import pytest

from benchmarks.support.store_history import KernelLeft, Left, Noted, Promise, breaches


def sound() -> tuple[Noted, Left]:
    """Return two designs, of which one is built, retired and has an outcome; a third was refused and is there all the same."""
    noted = Noted(
        blueprints={"b1", "b2"},
        kernels={"k1": "j1"},
        retired={"k1": True},
        outcomes={"d1"},
        refused=1,
        sizes={"k1": 10},
    )
    left = Left(
        blueprints={"b1": ("gate", 1), "b2": ("gate", 2), "b3": ("mixer", 1)},
        named={"b1", "b2", "b3"},
        jobs={"j1": ("b1", "done", "k1"), "j2": ("b2", "queued", ""), "j3": ("b3", "leased", "")},
        kernels={"k1": KernelLeft("k1", 10, "retired", True)},
        outcomes={"d1", "d2"},
        bytes={"k1": 10, "left over": 5},
        announced={"m1": "b1", "m2": "b2", "m3": "b3", "m4": "b2"},
        heard={"m1": "b1", "m2": "b2", "m3": "b3", "m4": "b2"},
        told={"p1": "b1", "p2": "b2", "p3": "b3", "p4": "b1"},
        followed={"p1": "b1", "p2": "b2", "p3": "b3", "p4": "b1"},
    )
    return noted, left


def test_a_sound_store_breaks_nothing() -> None:
    assert breaches(*sound()) == []


def _without(table: str, key: str) -> Callable[[Noted, Left], None]:
    def planted(_: Noted, left: Left) -> None:
        held = getattr(left, table)
        held.discard(key) if isinstance(held, set) else held.pop(key)

    return planted


def _with(table: str, key: str, value: object) -> Callable[[Noted, Left], None]:
    return lambda _, left: getattr(left, table).update({key: value})


PLANTED = [
    ("a lost blueprint", _without("blueprints", "b2"), Promise.LOST, "b2"),
    ("a lost build", _without("jobs", "j2"), Promise.LOST, "b2"),
    ("a lost kernel", _without("kernels", "k1"), Promise.LOST, "k1"),
    ("a lost end of a build", _with("jobs", "j1", ("b1", "leased", "")), Promise.LOST, "k1"),
    ("a lost retirement", _with("kernels", "k1", KernelLeft("k1", 10, "validated", True)), Promise.LOST, "k1"),
    ("a lost outcome", _without("outcomes", "d1"), Promise.LOST, "d1"),
    ("missing or damaged bytes", _without("bytes", "k1"), Promise.HOLLOW, "k1"),
    ("bytes cut short", _with("bytes", "k1", 9), Promise.HOLLOW, "k1"),
    ("a row about other bytes", _with("kernels", "k1", KernelLeft("k2", 10, "retired", True)), Promise.HOLLOW, "k1"),
    ("a version left out", _with("blueprints", "b2", ("gate", 3)), Promise.TORN, "gate"),
    ("a version given twice", _with("blueprints", "b2", ("gate", 1)), Promise.TORN, "gate"),
    ("a name that nobody finds", _without("named", "b1"), Promise.HALF, "b1"),
    ("no report", _with("kernels", "k1", KernelLeft("k1", 10, "retired", False)), Promise.HALF, "k1"),
    ("a build done with nothing", _with("jobs", "j2", ("b2", "done", "")), Promise.HALF, "j2"),
    ("a build of nothing", _with("jobs", "j4", ("b4", "queued", "")), Promise.HALF, "j4"),
    ("a lost event", _without("heard", "m4"), Promise.SILENT, "m4"),
    ("a build nobody was told of", _with("jobs", "j5", ("b9", "queued", "")), Promise.SILENT, "j5"),
    ("an event that was rolled back", _with("heard", "m9", "b1"), Promise.INVENTED, "m9"),
    ("an event about another design", _with("heard", "m1", "b2"), Promise.INVENTED, "m1"),
    ("lost progress", _without("followed", "p4"), Promise.SILENT, "p4"),
    ("progress that was rolled back", _with("followed", "p9", "b1"), Promise.INVENTED, "p9"),
    ("a build without progress", _without("told", "p2"), Promise.SILENT, "j2"),
    ("an event about nothing", _without("blueprints", "b3"), Promise.INVENTED, "m3"),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "promise", "about"), [row[1:] for row in PLANTED], ids=[row[0] for row in PLANTED])
def test_a_planted_fault_is_found(plant: Callable[[Noted, Left], None], promise: Promise, about: str) -> None:
    noted, left = sound()
    plant(noted, left)
    assert (promise, about) in [(breach.promise, breach.about) for breach in breaches(noted, left)]


def test_what_was_never_acknowledged_may_be_there_or_not() -> None:
    noted, left = sound()
    noted.blueprints.clear()
    noted.kernels.clear()
    noted.retired.clear()
    noted.outcomes.clear()
    assert breaches(noted, left) == []
    assert breaches(noted, Left()) == []
