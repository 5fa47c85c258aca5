"""Kept without clear harm, culled on clear harm, rolled back where the loss is not finite; planted through ``validate``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import esper
from esper.kasmina import SeedState, placement_of
from esper.services.tolaria.events import EventKind, GrowthEvent
from esper.services.tolaria.growth import Growth
from esper.testing.controllers import GraftAt

X = torch.rand(200, 2, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > X[:, 1]).long()
EVERY, STEPS = 5, 200


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One library for the module: a kernel is compiled once."""
    return tmp_path_factory.mktemp("runs")


def _grafts(model: nn.Module) -> int:
    return sum(1 for name, _ in model.named_modules() if name.endswith(".kernel"))


def _trained(
    root: Path,
    penalty: Callable[[nn.Module], float],
    *,
    steps: int = STEPS,
    planned: int = STEPS,
    at: tuple[int, ...] = (8,),
    open_at_end: bool = False,
    **changes: Any,
) -> tuple[Growth, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    esper.wrap(model, example=X[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def validate(present: nn.Module) -> Tensor:
        return cross_entropy(present(X[150:]), Y[150:], reduction="none") + penalty(present)

    growth = esper.attach(
        model, optimizer, validate=validate, every=EVERY, steps=planned, budget="x30",
        controller=GraftAt(*at, blueprint="mlp_adapter"), late="wait", root=root, **changes,
    )  # fmt: skip
    for _ in range(steps):
        batch = torch.randint(150, (16,))
        loss = cross_entropy(model(X[batch]), Y[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step(loss)
    if not open_at_end:
        growth.close()
    return growth, model, optimizer


def _of(growth: Growth, kind: EventKind) -> list[GrowthEvent]:
    return [event for event in growth.events if event.kind is kind]


def _state(model: nn.Module, event: GrowthEvent) -> SeedState:
    return placement_of(model).seeds[event.slot, event.seed_idx].state


def test_a_harmless_graft_is_kept_with_its_gain_and_error(root: Path) -> None:
    growth, model, _ = _trained(root, lambda _: 0.0)
    (kept,) = _of(growth, EventKind.KEPT)
    assert kept.gain_error is not None
    assert "no clear harm" in kept.why
    assert kept.step > 9 * EVERY + 3 * EVERY, "never judged within three boundaries"
    assert _state(model, kept) is SeedState.FOSSILIZED
    assert _grafts(model) == 1


def test_clear_harm_is_culled_and_the_state_before_the_join_is_put_back(root: Path) -> None:
    growth, model, optimizer = _trained(root, lambda model: 5.0 * _grafts(model))
    (culled,) = _of(growth, EventKind.CULLED)
    assert culled.gain is not None
    assert culled.gain < -4.0
    assert "clear harm" in culled.why
    assert "the state before the join was restored" in culled.why
    assert _grafts(model) == 0
    assert len(optimizer.param_groups) == 1
    assert growth.spent_steps == STEPS, "its steps count as spent"


def test_after_a_cull_the_slot_rests_and_wakes(root: Path) -> None:
    growth, model, _ = _trained(root, lambda model: 5.0 * _grafts(model), steps=115)
    (culled,) = _of(growth, EventKind.CULLED)
    assert _state(model, culled) is SeedState.EMBARGOED
    growth, model, _ = _trained(root, lambda model: 5.0 * _grafts(model))
    assert _state(model, culled) is SeedState.DORMANT


def test_a_cull_may_train_on_without_the_seed(root: Path) -> None:
    growth, model, optimizer = _trained(root, lambda model: 5.0 * _grafts(model), on_cull="continue")
    (culled,) = _of(growth, EventKind.CULLED)
    assert "training goes on without it" in culled.why
    assert _grafts(model) == 0
    assert len(optimizer.param_groups) == 1


def test_where_another_graft_joined_since_a_cull_trains_on(root: Path) -> None:
    growth, model, _ = _trained(root, lambda model: 5.0 * _grafts(model), at=(8, 9))
    first, second = _of(growth, EventKind.CULLED)
    assert first.slot != second.slot
    assert "training goes on without it" in first.why
    assert _grafts(model) == 0


def test_a_loss_that_is_not_finite_is_rolled_back_at_once_and_the_slot_is_locked(root: Path) -> None:
    seen: list[int] = []

    def penalty(model: nn.Module) -> float:
        seen.append(_grafts(model))
        return float("nan") if _grafts(model) else 0.0

    growth, model, optimizer = _trained(root, penalty)
    (undone,) = _of(growth, EventKind.ROLLED_BACK)
    assert "not finite" in undone.why
    assert _state(model, undone) is SeedState.LOCKED
    assert _grafts(model) == 0
    assert len(optimizer.param_groups) == 1
    assert seen.count(1) == 1, "one boundary was enough"
    assert not _of(growth, EventKind.CULLED)


def test_a_graft_that_breaks_the_loss_takes_no_other_with_it(root: Path) -> None:
    """The newest of two grafts makes the held-out loss not finite; the one that was kept before stays kept."""
    growth, model, _ = _trained(root, lambda model: float("nan") if _grafts(model) > 1 else 0.0, at=(8, 36))
    (kept,), (undone,) = _of(growth, EventKind.KEPT), _of(growth, EventKind.ROLLED_BACK)
    assert kept.slot != undone.slot
    assert not _of(growth, EventKind.CULLED)
    assert _grafts(model) == 1


def test_steady_harm_of_an_early_graft_is_seen(root: Path) -> None:
    boundaries_with_graft = 0

    def penalty(model: nn.Module) -> float:
        nonlocal boundaries_with_graft
        boundaries_with_graft += _grafts(model)
        return 0.5 * boundaries_with_graft if _grafts(model) else 0.0

    growth, model, _ = _trained(root, penalty, at=(6,))
    assert _of(growth, EventKind.CULLED)
    assert _grafts(model) == 0


def test_a_run_whose_length_is_no_multiple_of_the_boundaries_is_judged_at_its_last_one(root: Path) -> None:
    growth, model, _ = _trained(root, lambda _: 0.0, at=(38,), planned=STEPS + 3)
    (kept,) = _of(growth, EventKind.KEPT)
    assert kept.step == STEPS
    assert _state(model, kept) is SeedState.FOSSILIZED


def test_nothing_joins_at_the_last_boundary(root: Path) -> None:
    growth, model, _ = _trained(root, lambda _: 0.0, at=(39,))
    (cancelled,) = _of(growth, EventKind.CANCELLED)
    assert "the run ends" in cancelled.why
    assert _grafts(model) == 0


def test_an_embargo_outlives_the_rollback_of_an_older_graft(root: Path) -> None:
    growth, model, _ = _trained(
        root, lambda model: 5.0 * (_grafts(model) > 1), at=(8, 30), steps=180, on_cull="continue", open_at_end=True
    )
    (culled,) = _of(growth, EventKind.CULLED)
    first, _ = _of(growth, EventKind.GRAFTED)
    assert _state(model, culled) is SeedState.EMBARGOED
    growth.rollback(first)
    assert _state(model, culled) is SeedState.EMBARGOED
    growth.close()
