"""torch's averaged model grows with the model, and is taken and put back by name."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, update_bn

import esper
from esper.errors import ConfigError, GraftFailed
from esper.kasmina import placement_of, topology
from esper.services.tolaria.averaged_model import FollowingAverage
from esper.services.tolaria.snapshot import Snapshot, Subject, capture, restore
from esper.services.tolaria.surgery import Cut, Surgeon
from esper.testing.zoo import ZOO, ZooHost
from tests.laws.support import kernel_for
from tests.laws.training import COMBINATIONS, Training, equal

KINDS: dict[str, Callable[[nn.Module], AveragedModel]] = {
    "equal": AveragedModel,
    "ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "ema-one-by-one": lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(0.9)),
    "ema-buffers": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "ema-one-by-one-buffers": lambda m: AveragedModel(m, avg_fn=get_ema_avg_fn(0.9), use_buffers=True),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


class Averaged:
    """A host in training with an average of its weights."""

    def __init__(self, host: ZooHost, kind: str) -> None:
        self.training = Training(host, COMBINATIONS[0])
        self.ema = KINDS[kind](self.training.model)
        self.follower = FollowingAverage(self.training.model, self.ema)
        plain = self.training.subject
        others = (*plain.others, self.follower)
        self.subject = Subject(plain.model, plain.optimizer, plain.schedule, others, (self.follower,))
        self.surgeon = Surgeon(self.subject, snapshots_held=3, tolerance=1e-6)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.training.train(1)
            self.ema.update_parameters(self.training.model)

    def graft(self, slot: str, key: str) -> Cut:
        data, kernel_id = kernel_for(self.training.model, slot, "mlp_adapter")
        self.surgeon.graft(Cut(slot, 0), data, kernel_id=kernel_id, key=key, seen=None)
        return Cut(slot, 0)

    def names(self) -> list[str]:
        return [name for name, _ in self.ema.module.named_parameters()]

    def fits(self) -> bool:
        """Tell whether model and average have the same tensors in the same order, as torch pairs them by position."""
        model = self.training.model
        own = [[n for n, _ in part] for part in (model.named_parameters(), model.named_buffers())]
        module = self.ema.module
        return own == [[n for n, _ in part] for part in (module.named_parameters(), module.named_buffers())]


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@EVERY_KIND
@pytest.mark.parametrize("host", ["mlp", "resnet"])
def test_a_newborn_is_averaged_from_its_birth_and_the_host_as_ever(host: str, kind: str) -> None:
    averaged = Averaged(ZOO[host], kind)
    averaged.train(3)
    before = values(averaged.ema)
    averaged.graft(averaged.training.slots[0], "first")
    assert averaged.fits()
    born = {n: t for n, t in values(averaged.training.model).items() if "esper_grafts" in n}
    after = values(averaged.ema)
    assert equal({n: after[n] for n in before}, before)
    assert equal({n.removeprefix("module."): t for n, t in after.items() if n not in before}, born)
    oracle = copy.deepcopy(averaged.ema)  # goes on without Esper
    for _ in range(3):
        averaged.train(1)
        oracle.update_parameters(averaged.training.model)
    assert equal(values(averaged.ema), values(oracle))
    assert not equal(values(averaged.ema), values(averaged.training.model))


@EVERY_KIND
def test_a_rollback_puts_the_average_back_to_the_bit_and_it_goes_on_as_it_would_have(kind: str) -> None:
    plain = Averaged(ZOO["resnet"], kind)
    plain.train(2)
    held = capture(plain.subject)
    wanted = values(plain.ema)
    grown = Averaged(ZOO["resnet"], kind)
    restore(grown.subject, held)
    grown.graft(grown.training.slots[0], "first")
    grown.train(2)
    assert grown.surgeon.roll_back("first")
    assert equal(values(grown.ema), wanted)
    assert int(grown.ema.n_averaged) == 2
    grown.train(2)
    restore(plain.subject, held)
    plain.train(2)
    assert equal(values(grown.ema), values(plain.ema))


def test_a_cull_a_later_graft_and_a_failed_join_leave_the_average_fitting() -> None:
    averaged = Averaged(ZOO["mlp"], "ema")
    first, second = averaged.training.slots[:2]
    averaged.train(1)
    cut = averaged.graft(first, "first")
    averaged.train(2)
    averaged.graft(second, "second")
    averaged.surgeon.cull(cut, key="first", put_back=False)
    assert averaged.fits()
    kept = values(averaged.ema)
    with pytest.raises(GraftFailed):
        averaged.graft(second, "again")
    assert averaged.fits()
    assert equal(values(averaged.ema), kept)
    averaged.train(1)


def test_a_snapshot_brings_grafts_and_averages_into_a_fresh_training() -> None:
    averaged = Averaged(ZOO["resnet"], "ema")
    averaged.graft(averaged.training.slots[0], "first")
    averaged.train(3)
    held = capture(averaged.subject).to_dict()
    fresh = Averaged(ZOO["resnet"], "ema")
    restore(fresh.subject, Snapshot.from_dict(held))
    assert equal(values(fresh.ema), values(averaged.ema))
    assert fresh.names() == averaged.names()


@pytest.mark.parametrize("example", [True, False])
def test_one_that_was_made_before_the_model_was_wrapped_grows_too(example: bool) -> None:
    host = ZOO["mlp"]
    model = host.model()
    average = AveragedModel(model)
    esper.wrap(model, host.slots, example=host.batch().x if example else None)
    follower = FollowingAverage(model, average)
    model(host.batch().x)
    slot = next(iter(placement_of(model).slots))
    subject = Subject(model, torch.optim.SGD(model.parameters(), lr=0.1), None, (follower,), (follower,))
    data, kernel_id = kernel_for(model, slot, "mlp_adapter")
    Surgeon(subject, snapshots_held=1, tolerance=1e-6).graft(
        Cut(slot, 0), data, kernel_id=kernel_id, key="k", seen=None
    )
    assert [entry.slot for entry in topology(average.module)] == [slot]
    average.update_parameters(model)
    assert equal(values(average.module), values(model))
    assert type(esper.unwrap(average.module)) is type(host.model())


def test_batch_statistics_are_renewed_as_ever() -> None:
    averaged = Averaged(ZOO["resnet"], "ema")
    averaged.graft(averaged.training.slots[0], "first")
    averaged.train(2)
    batches = [averaged.training.host.batch(seed=n).x for n in range(3)]
    before = values(averaged.ema)
    update_bn(batches, averaged.ema)
    changed = {name for name, tensor in values(averaged.ema).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)


def test_an_average_of_another_model_is_refused() -> None:
    model = esper.wrap(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    for other in (nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(4, 4)):
        with pytest.raises(ConfigError) as caught:
            FollowingAverage(model, AveragedModel(other))
        assert caught.value.code == "ESP-2117"
