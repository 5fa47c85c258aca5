"""Law 5: save, load into fresh objects, go on: equal to an unbroken run to the bit, in the middle of a blend too."""

import io
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.errors import ConfigError
from esper.kasmina import SeedState, placement_of
from esper.services.tolaria.growth import Growth
from esper.services.tolaria.snapshot import Snapshot, capture, restore
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.controllers import GraftAt
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import EVERY_HOST, kernel_for
from tests.laws.training import (
    COMBINATIONS,
    EVERY_COMBINATION,
    EVERY_HOST_WITH_SOME_COMBINATION,
    STEPS,
    Picture,
    Training,
    equal,
    reseed,
)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Write a state and read it back; only plain containers and tensors come through."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def story(growth: Growth) -> list[tuple[int, str, str, str]]:
    """Return what happened, without names that are drawn anew in every run."""
    return [(event.step, event.kind.value, event.slot, event.blueprint) for event in growth.events]


@EVERY_HOST_WITH_SOME_COMBINATION
def test_a_run_saved_in_mid_blend_goes_on_as_the_unbroken_one(
    host: ZooHost, combination: tuple[str, str], root: Path
) -> None:
    first = Training(host, combination)
    with first.attach(root) as growth:
        reseed(9)
        first.train(5, growth)
        growth.graft(first.slots[0], "gated_mlp")
        first.train(2, growth)
        assert placement_of(first.model).seeds[first.slots[0], 0].state is SeedState.BLENDING
        saved, wanted = through_a_file(growth.state_dict()), [first.picture()]
        losses = first.train(6, growth)
        wanted.append(first.picture())
        told = story(growth)

    second = Training(host, combination, seed=1)
    with second.attach(root) as growth:
        growth.load_state_dict(saved)
        assert not second.picture().differences(wanted[0])
        assert second.train(6, growth) == losses
        assert not second.picture().differences(wanted[1])
        assert story(growth) == told


CONTROLLED: dict[str, Any] = {"controller": GraftAt(2, 4, 7), "late": "wait"}


@pytest.fixture(scope="module")
def unbroken(root: Path) -> tuple[list[float], Picture, list[tuple[int, str, str, str]]]:
    """Losses, end and story of a run that was never stopped."""
    training = Training(ZOO["resnet"], COMBINATIONS[3])
    with training.attach(root, **CONTROLLED) as growth:
        reseed(2)
        return training.train(STEPS, growth), training.picture(), story(growth)


@pytest.mark.parametrize("save_at", [3, 8, 11, 13, 20, 42])
def test_a_run_with_a_controller_goes_on_from_any_step_as_if_it_had_never_stopped(
    save_at: int, unbroken: tuple[list[float], Picture, list[tuple[int, str, str, str]]], root: Path
) -> None:
    """Saved before, between decision and join, in the blend, between two grafts, and after a verdict."""
    losses, wanted, told = unbroken
    assert sum(kind == "grafted" for _, kind, _, _ in told) == 3
    first = Training(ZOO["resnet"], COMBINATIONS[3])
    with first.attach(root, **CONTROLLED) as growth:
        reseed(2)
        assert first.train(save_at, growth) == losses[:save_at]
        saved = through_a_file(growth.state_dict())
    reseed(77)
    second = Training(ZOO["resnet"], COMBINATIONS[3], seed=1)
    with second.attach(root, **CONTROLLED) as growth:
        growth.load_state_dict(saved)
        assert second.train(STEPS - save_at, growth) == losses[save_at:]
        assert not second.picture().differences(wanted)
        assert story(growth) == told
        assert growth.spent_steps == STEPS


def test_a_decision_that_was_saved_joins_at_its_boundary_though_nothing_waits_for_kernels(root: Path) -> None:
    arguments: dict[str, Any] = {"controller": GraftAt(2), "late": "slip"}
    first = Training(ZOO["resnet"], COMBINATIONS[3])
    with first.attach(root, **arguments) as growth:
        until_ready(growth)
        for _ in range(3):  # saved at each boundary: that waits for the controller, as "slip" alone never does
            first.train(3, growth)
            saved = through_a_file(growth.state_dict())
    second = Training(ZOO["resnet"], COMBINATIONS[3], seed=1)
    with second.attach(root, **arguments) as growth:
        growth.load_state_dict(saved)
        second.train(3, growth)
        assert story(growth) == [(12, "grafted", "layer1.0", "conv_bottleneck")]


def until_ready(growth: Growth) -> None:
    """Wait until every kernel is here."""
    for _ in range(1000):
        if not any("kernel not ready" in candidate.masked for candidate in growth.propose()):
            return
        time.sleep(0.01)
    raise AssertionError("kernels did not come")


def test_a_graft_can_be_rolled_back_after_a_resume(root: Path) -> None:
    first = Training(ZOO["resnet"], COMBINATIONS[2])
    with first.attach(root) as growth:
        first.train(6, growth)
        before, wanted = growth.digest(), first.picture()
        growth.graft("layer1.0", "gated_conv")
        first.train(3, growth)
        saved = through_a_file(growth.state_dict())
    second = Training(ZOO["resnet"], COMBINATIONS[2], seed=1)
    with second.attach(root) as growth:
        growth.load_state_dict(saved)
        assert equal(growth.state_dict()["trials"], saved["trials"])  # and it can be saved again
        growth.rollback(growth.events[0])
        assert growth.digest() == before
        assert not second.picture().differences(wanted)


@EVERY_COMBINATION
@EVERY_HOST
def test_a_snapshot_restores_into_fresh_objects(host: ZooHost, combination: tuple[str, str]) -> None:
    first = Training(host, combination)
    surgeon = Surgeon(first.subject, snapshots_held=1, tolerance=1e-6)
    reseed(5)
    first.train(3)
    for slot in first.slots:
        data, kernel_id = kernel_for(first.model, slot, "mlp_adapter")
        surgeon.graft(Cut(slot, 0), data, kernel_id=kernel_id, key=slot, seen=None)
    first.train(2)
    saved, wanted = through_a_file(capture(first.subject).to_dict()), first.picture()
    losses, end = first.train(3), first.picture()
    second = Training(host, combination, seed=1)
    restore(second.subject, Snapshot.from_dict(saved))
    assert not second.picture().differences(wanted)
    assert second.train(3) == losses
    assert not second.picture().differences(end)


def test_a_state_of_another_version_is_refused(root: Path) -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[0])
    with training.attach(root) as growth, pytest.raises(ConfigError, match="version 99"):
        growth.load_state_dict({"version": 99})
