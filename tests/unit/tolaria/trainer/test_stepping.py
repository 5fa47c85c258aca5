"""Accumulation, clipping, mixed precision and schedules within one optimizer step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from esper.errors import ConfigError
from esper.services.tolaria.trainer import Clipping, TolariaTrainer, Validation
from esper.services.tolaria.trainer.objective import Objective
from esper.services.tolaria.trainer.optimizers import OPTIMIZERS, make_optimizer
from esper.services.tolaria.trainer.precision import PRECISIONS, Precision
from esper.services.tolaria.trainer.schedules import SCHEDULES, make_schedule
from esper.services.tolaria.trainer.stepping import Stepper
from tests.unit.tolaria.trainer.support import config, held_out, host, loader, same, weights

CPU = torch.device("cpu")
OBJECTIVE = Objective("cross_entropy", {}, target="labels")


def stepper(model: nn.Module, precision: str = "float32", **limits: float) -> Stepper:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Stepper(model, optimizer, None, OBJECTIVE, Precision(PRECISIONS[precision], CPU), Clipping(**limits))


def batch(seed: int = 0, count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator), torch.randint(2, (count,), generator=generator)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))


def test_accumulated_batches_step_as_one_large_batch_does() -> None:
    small, large = plain(), plain()
    (x, y), (u, v) = batch(0), batch(1)
    loss = stepper(small).step([(x, y), (u, v)])
    whole = stepper(large).step([(torch.cat([x, u]), torch.cat([y, v]))])
    assert torch.allclose(loss, whole)
    for left, right in zip(small.parameters(), large.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-7)


def test_the_last_step_of_an_epoch_takes_what_is_left(tmp_path: Path) -> None:
    report = TolariaTrainer(config(tmp_path, accumulate=3)).fit(host(), loader(), held_out())
    assert report.steps == 2 * 3, "8 batches are 3 + 3 + 2"
    assert len(report.losses) == 2


@pytest.mark.parametrize(("limits", "kind"), [({"norm": 1e-3}, 2.0), ({"value": 1e-3}, float("inf"))])
def test_clipping_limits_the_step(limits: dict[str, float], kind: float) -> None:
    model = plain()
    before = [p.detach().clone() for p in model.parameters()]
    stepper(model, **limits).step([batch()])
    moves = [(now.detach() - then).flatten() / 0.1 for now, then in zip(model.parameters(), before, strict=True)]
    assert float(torch.cat(moves).norm(kind)) == pytest.approx(1e-3, rel=1e-3)


def test_gradients_are_clipped_after_they_were_unscaled() -> None:
    model, scaled = plain(), plain()
    stepper(model, norm=0.1).step([batch()])
    mixed = stepper(scaled, norm=0.1)
    mixed = Stepper(scaled, mixed.optimizer, None, OBJECTIVE, Precision(torch.float16, CPU), Clipping(norm=0.1))
    mixed.step([batch()])
    for left, right in zip(model.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-3)


def test_autocast_runs_the_model_in_the_asked_precision() -> None:
    seen: list[torch.dtype] = []

    class Watching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        stepper(Watching(2, 2), name).step([batch()])
        assert seen.pop() is dtype


def test_a_step_whose_gradients_overflow_is_left_out_and_counted() -> None:
    model = plain()
    before, mixed = weights(model), stepper(model, "float16")
    assert mixed.precision.scaler is not None
    x, y = batch()
    mixed.step([(x * torch.inf, y)])
    assert mixed.precision.skipped == 1
    assert same(weights(model), before)
    mixed.step([(x, y)])
    assert mixed.precision.skipped == 1
    assert not same(weights(model), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_a_step_and_its_options(name: str) -> None:
    model = plain()
    before = weights(model)
    optimizer = make_optimizer(name, model, learning_rate=0.1, options={"weight_decay": 0.01})
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    Stepper(model, optimizer, None, OBJECTIVE, Precision(None, CPU), Clipping()).step([batch()])
    assert not same(weights(model), before)


def rates(name: str, steps: int = 20, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(name, optimizer, steps=steps, options=options)
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if schedule is not None and not isinstance(schedule, ReduceLROnPlateau):
            schedule.step()
    return found


def test_schedules_have_the_shape_of_their_names() -> None:
    cosine, onecycle, warm = rates("cosine"), rates("onecycle"), rates("warmup_cosine", warmup_steps=5)
    assert cosine[0] == 1.0
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[10] == pytest.approx(0.5)
    assert max(onecycle) == pytest.approx(1.0)
    assert onecycle[0] == pytest.approx(1 / 25)
    assert warm[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert warm[5:] == sorted(warm[5:], reverse=True)
    assert rates("none") == rates("plateau") == [1.0] * 20
    assert rates("warmup_cosine", warmup_steps=0, final_ratio=0.5)[-1] > 0.5


def test_a_run_of_every_schedule_ends(tmp_path: Path) -> None:
    for name in SCHEDULES:
        TolariaTrainer(config(tmp_path, schedule=name, max_steps=5, num_epochs=1)).fit(host(), loader(), held_out())


def test_a_schedule_that_waits_for_a_plateau_is_stepped_with_the_metric(tmp_path: Path) -> None:
    model, made = host(), []

    def schedule(optimizer: torch.optim.Optimizer, _steps: int) -> Any:
        made.append(ReduceLROnPlateau(optimizer, mode="max", patience=0, threshold=2.0))
        return made[0]

    settings = config(
        tmp_path, schedule=schedule, metrics=("accuracy",), num_epochs=3,
        validation=Validation(monitor="accuracy", mode="max"),
    )  # fmt: skip
    report = TolariaTrainer(settings).fit(model, loader(), held_out())
    assert made[0].last_epoch == len(report.validations) == 3
    assert made[0].get_last_lr() == [pytest.approx(1e-2 * 0.1**2)], "two validations after the first were no better"


def test_parts_may_be_made_by_the_users_own_functions(tmp_path: Path) -> None:
    made: list[Any] = []

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        made.append(torch.optim.NAdam(model.parameters(), lr=0.01))
        return made[0]

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
        made.append(steps)
        return LambdaLR(optimizer, lambda step: 0.5**step)

    TolariaTrainer(config(tmp_path, optimizer=optimizer, schedule=schedule, max_steps=6)).fit(
        host(), loader(), held_out()
    )
    assert made[1] == 6
    assert made[0].param_groups[0]["lr"] == pytest.approx(0.01 * 0.5**6)


def test_parts_that_cannot_be_made_are_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for act, code in (
        (lambda: make_optimizer("sgd", plain(), learning_rate=0.1, options={"momentom": 1}), "ESP-2703"),
        (lambda: make_optimizer(lambda model: 3, plain(), learning_rate=0.1, options={}), "ESP-2703"),  # type: ignore[arg-type, return-value]
        (lambda: make_schedule("cosine", optimizer, steps=3, options={"tmax": 1}), "ESP-2704"),
        (lambda: make_schedule(lambda o, n: 3, optimizer, steps=3, options={}), "ESP-2704"),  # type: ignore[arg-type, return-value]
        (lambda: make_schedule("warmup_cosine", optimizer, steps=3, options={"warmup_steps": 3}), "ESP-2700"),
    ):
        with pytest.raises(ConfigError, match=code):
            act()
