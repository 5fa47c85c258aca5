"""Mixed precision, accumulation, clipping, memory formats and checkpointed activations around a graft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import esper
from esper.kasmina import placement_of
from esper.services.tolaria.averaging import AveragedWeights
from esper.services.tolaria.snapshot import Subject, digest
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.controllers import Silent
from esper.testing.zoo import ZOO
from tests.laws.support import graft, kernel_for
from tests.laws.training import COMBINATIONS, Training, equal

HOSTS = pytest.mark.parametrize("name", ["mlp", "resnet"])


class Mixed:
    """A host trained with a scaler, autocast, accumulation and clipping."""

    def __init__(self, name: str, dtype: torch.dtype, *, to_none: bool = True) -> None:
        self.training = Training(ZOO[name], COMBINATIONS[3])
        self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
        self.dtype, self.to_none = dtype, to_none
        plain = self.training.subject
        self.subject = Subject(plain.model, plain.optimizer, plain.schedule, (*plain.others, self.scaler))
        self.surgeon = Surgeon(self.subject, snapshots_held=2, tolerance=1e-6)
        self.norms: list[float] = []

    def micro_batch(self) -> None:
        with torch.autocast("cpu", dtype=self.dtype):
            loss = self.training.host.loss(self.training.model, self.training.loader.next()) / 2
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        self.scaler.unscale_(self.training.optimizer)
        norm = nn.utils.clip_grad_norm_(self.training.model.parameters(), 0.5)
        self.norms.append(float(norm))
        self.scaler.step(self.training.optimizer)
        self.scaler.update()
        self.training.schedule.step()
        self.training.optimizer.zero_grad(set_to_none=self.to_none)

    def train(self, steps: int) -> None:
        self.training.model.train()
        for _ in range(steps):
            self.micro_batch()
            self.micro_batch()
            self.step()

    def graft(self, key: str = "join") -> Cut:
        slot = self.training.slots[0]
        data, kernel_id = kernel_for(self.training.model, slot, "mlp_adapter")
        self.surgeon.graft(Cut(slot, 0), data, kernel_id=kernel_id, key=key, seen=None)
        return Cut(slot, 0)

    def grown(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.training.model.named_parameters() if "esper_grafts" in n}


@HOSTS
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_rollback_in_mixed_precision_restores_scaler_and_all_to_the_bit(
    name: str, dtype: torch.dtype, to_none: bool
) -> None:
    plain, grown = Mixed(name, dtype, to_none=to_none), Mixed(name, dtype, to_none=to_none)
    for mixed in (plain, grown):
        torch.manual_seed(3)
        mixed.train(3)
    before, scale = digest(grown.subject), grown.scaler.state_dict()
    grown.graft()
    assert grown.scaler.state_dict() == scale
    grown.train(3)
    assert all(p.grad is None or not p.grad.any() for p in grown.grown().values())
    assert grown.scaler.state_dict() != scale
    assert grown.surgeon.roll_back("join")
    assert (digest(grown.subject), grown.scaler.state_dict()) == (before, scale)
    for mixed in (plain, grown):
        mixed.train(3)
    assert digest(grown.subject) == digest(plain.subject)
    assert grown.norms[-3:] == plain.norms[-3:]


@HOSTS
def test_a_graft_between_micro_batches_leaves_the_gradients_of_the_host(name: str) -> None:
    mixed = Mixed(name, torch.bfloat16)
    mixed.train(1)
    mixed.micro_batch()
    gradients = {n: p.grad.clone() for n, p in mixed.training.model.named_parameters() if p.grad is not None}
    mixed.graft()
    now = dict(mixed.training.model.named_parameters())
    assert all(equal(now[n].grad, gradient) for n, gradient in gradients.items())
    mixed.micro_batch()
    mixed.step()
    assert any(p in mixed.training.optimizer.state for p in mixed.grown().values())


@HOSTS
def test_clipping_over_the_model_includes_the_newborn(name: str) -> None:
    mixed = Mixed(name, torch.bfloat16)
    mixed.graft()
    mixed.train(1)
    mixed.micro_batch()
    mixed.scaler.unscale_(mixed.training.optimizer)
    live = [p.grad for p in mixed.training.model.parameters() if p.grad is not None]
    assert any(p.grad is not None and p.grad.any() for p in mixed.grown().values())
    nn.utils.clip_grad_norm_(mixed.training.model.parameters(), 1e-3)
    total = torch.linalg.vector_norm(torch.stack([g.norm() for g in live]))
    assert float(total) == pytest.approx(1e-3, rel=1e-2)


def test_channels_last_is_kept_by_graft_rollback_and_moments() -> None:
    training = Training(ZOO["resnet"], COMBINATIONS[2])
    training.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def strides() -> dict[str, Any]:
        found: dict[str, Any] = {n: p.stride() for n, p in training.model.named_parameters()}
        for n, p in training.model.named_parameters():
            state = training.optimizer.state.get(p, {})
            found.update({f"{n}:{k}": v.stride() for k, v in state.items() if isinstance(v, Tensor)})
        return found

    training.train(2)
    before = strides()
    surgeon = Surgeon(training.subject, snapshots_held=1, tolerance=1e-6)
    slot = training.slots[0]
    data, kernel_id = kernel_for(training.model, slot, "conv_bottleneck")
    surgeon.graft(Cut(slot, 0), data, kernel_id=kernel_id, key="join", seen=None)
    training.train(2)
    images = [p for n, p in training.model.named_parameters() if "esper_grafts" in n and p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in images)
    assert any(not p.is_contiguous() for p in images)
    surgeon.roll_back("join")
    assert strides() == before


def gradients_of(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, list[Any]]:
    torch.manual_seed(5)
    model.zero_grad(set_to_none=True)
    output = run(x.clone().requires_grad_())
    output.square().mean().backward()
    return output.detach(), [p.grad for p in model.parameters()]


def grown_sequential() -> nn.Sequential:
    """Return blocks with dropout, two of which have grafts with live factors."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.5)) for _ in range(4)]
    model = esper.wrap(nn.Sequential(*blocks), ["0", "2.0"], example=torch.ones(2, 6))
    for slot in ("0", "2.0"):
        newborn = graft(model, slot, "mlp_adapter")
        for parameter in newborn.parameters.values():
            nn.init.normal_(parameter, std=0.5)
    assert isinstance(model, nn.Sequential)
    return model


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_give_the_gradients_of_plain_ones_with_dropout(reentrant: bool) -> None:
    model, x = grown_sequential(), torch.randn(3, 6)

    def one_by_one(h: Tensor) -> Tensor:
        for block in model:
            h = checkpoint(block, h, use_reentrant=reentrant)
        return h

    plain = gradients_of(model, model, x)
    assert equal(gradients_of(model, one_by_one, x), plain)
    in_segments = gradients_of(model, lambda h: checkpoint_sequential(model, 2, h, use_reentrant=reentrant), x)
    assert equal(in_segments, plain)


def test_averaged_weights_are_what_runs_where_autocast_holds_casts_of_others() -> None:
    model, x = nn.Linear(4, 4), torch.ones(2, 4)
    average = AveragedWeights(model)
    average.update()
    with torch.no_grad():
        model.weight.add_(2.0)
    average.update()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = model(x).detach()
        with average.applied():
            inside = model(x).detach()
        again = model(x).detach()
    with average.applied(), torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = model(x).detach()
    assert torch.equal(inside, wanted)
    assert torch.equal(again, own)


def test_a_second_optimizer_in_state_moves_with_the_training() -> None:
    training = Training(ZOO["mlp"], COMBINATIONS[2])
    matrices = [nn.Parameter(torch.ones(3, 3))]
    second = torch.optim.Muon(matrices, lr=0.1)
    plain = training.subject
    subject = Subject(plain.model, plain.optimizer, plain.schedule, (*plain.others, second))

    def step() -> None:
        matrices[0].grad = torch.randn(3, 3)
        second.step()

    step()
    held = second.state[matrices[0]]["momentum_buffer"].clone()
    surgeon = Surgeon(subject, snapshots_held=1, tolerance=1e-6)
    data, kernel_id = kernel_for(training.model, training.slots[0], "mlp_adapter")
    surgeon.graft(Cut(training.slots[0], 0), data, kernel_id=kernel_id, key="join", seen=None)
    training.train(2)
    step()
    surgeon.roll_back("join")
    assert torch.equal(second.state[matrices[0]]["momentum_buffer"], held)


def losses(model: nn.Module) -> Tensor:
    return F.mse_loss(model(torch.ones(4, 6)), torch.zeros(4, 6), reduction="none").mean(1)


def test_what_an_unwrap_left_in_optimizer_and_schedule_goes_when_the_model_is_attached_again(tmp_path: Path) -> None:
    model = grown_sequential()
    named = {n: p for n, p in model.named_parameters() if "esper_grafts" not in n}
    optimizer = torch.optim.AdamW(named.values())
    schedule = CosineAnnealingLR(optimizer, T_max=9)
    surgeon = Surgeon(Subject(model, optimizer, schedule), snapshots_held=1, tolerance=1e-6)
    data, kernel_id = kernel_for(model, "0", "mlp_adapter")
    surgeon.graft(Cut("0", 1), data, kernel_id=kernel_id, key="join", seen=None)
    model(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    schedule.step()
    esper.unwrap(model)
    assert len(optimizer.param_groups) == len(schedule.base_lrs) == 2
    esper.wrap(model, ["0"], example=torch.ones(2, 6))
    rate = esper.NewbornRate(warmup_steps=3)
    with esper.attach(
        model, optimizer, validate=losses, every=5, budget="x9", controller=Silent(), scheduler=[schedule],
        newborn_rate=rate, root=tmp_path,
    ) as growth:  # fmt: skip
        assert len(optimizer.param_groups) == len(schedule.base_lrs) == 1
        assert set(optimizer.state) == set(named.values())
        growth.graft("0", "mlp_adapter")
        assert optimizer.param_groups[1]["esper_rate"]["age"] == 0
        for _ in range(2):
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
            schedule.step()
        assert optimizer.param_groups[1]["esper_rate"]["age"] == 2
        saved = growth.state_dict()
        optimizer.step()
        growth.load_state_dict(saved)
        assert optimizer.param_groups[1]["esper_rate"]["age"] == 2
    assert placement_of(model).grower is None
