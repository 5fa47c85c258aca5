"""The order of the data is a function of seed, epoch and position, with and without workers."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, WeightedRandomSampler

from esper.errors import ConfigError
from esper.kasmina.quiet import capture_rng
from esper.services.tolaria.trainer.loaders import Feed
from esper.services.tolaria.trainer.splitting import feeds


class Augmented(Dataset[Tensor]):
    """Examples that draw from every generator, as augmentation does."""

    def __init__(self, count: int = 12) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index), random.random(), float(np.random.rand()), float(torch.rand(()))])


def feed(data: Any = None, *, seed: int = 0, **options: Any) -> Feed:
    arguments = {"batch_size": 3, "shuffle": True, **options}
    return feeds(DataLoader(data or Augmented(), **arguments), held_out=(), ratio=0.1, seed=seed)[0]


def taken(source: Feed, count: int) -> Tensor:
    return torch.stack([source.next() for _ in range(count)])


def test_every_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    found = taken(feed(), 8)[:, :, 0].reshape(2, 12)
    assert [sorted(epoch) for epoch in found.tolist()] == [[float(index) for index in range(12)]] * 2
    assert not torch.equal(found[0], found[1])


def test_another_seed_gives_another_order() -> None:
    assert not torch.equal(taken(feed(), 4), taken(feed(seed=1), 4))
    assert torch.equal(taken(feed(), 4), taken(feed(), 4))


def test_fetching_takes_nothing_from_the_global_generators() -> None:
    before = capture_rng()
    taken(feed(), 5)
    after = capture_rng()
    assert before.python == after.python
    assert torch.equal(before.cpu, after.cpu)
    assert str(before.numpy) == str(after.numpy)


@pytest.mark.parametrize("position", range(9))
def test_a_feed_goes_on_at_any_batch(position: int) -> None:
    whole, begun = taken(feed(), 12), feed()
    taken(begun, position) if position else None
    resumed = feed()
    resumed.load_state_dict(begun.state_dict())
    assert torch.equal(taken(resumed, 12 - position), whole[position:])


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing_also_where_they_stay(persistent: bool) -> None:
    whole = taken(feed(), 10)
    worked = feed(num_workers=2, persistent_workers=persistent)
    assert torch.equal(taken(worked, 3), whole[:3])
    state = worked.state_dict()
    assert torch.equal(taken(worked, 4), whole[3:7])
    worked.load_state_dict(state)
    assert torch.equal(taken(worked, 7), whole[3:]), "batches that workers had fetched ahead are not given again"


def test_a_sampler_of_the_users_own_can_be_gone_back_to() -> None:
    def weighted() -> Feed:
        generator = torch.Generator().manual_seed(5)
        sampler = WeightedRandomSampler([1.0] * 12, 12, generator=generator)
        return feed(shuffle=False, sampler=sampler)

    whole, begun, resumed = taken(weighted(), 10), weighted(), weighted()
    taken(begun, 6)
    resumed.load_state_dict(begun.state_dict())
    assert torch.equal(taken(resumed, 4), whole[6:])


def test_held_out_batches_are_the_same_each_time_even_of_a_loader_that_shuffles() -> None:
    for options in ({"shuffle": True}, {"sampler": SubsetRandomSampler(range(5))}):
        aside = DataLoader(Augmented(), batch_size=5, **options)
        _, found = feeds(DataLoader(Augmented(), batch_size=3), aside, ratio=0.1, seed=0)
        first, second = list(found), list(found)
        assert first
        assert all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


def test_no_example_is_trained_on_and_held_out() -> None:
    training, aside = feeds(DataLoader(Augmented(20), batch_size=3, shuffle=True), None, ratio=0.3, seed=0)
    learned = {float(x) for _ in range(len(training)) for x in training.next()[:, 0]}
    held = {float(x) for batch in aside for x in batch[:, 0]}
    assert len(held) == 6
    assert learned | held == {float(index) for index in range(20)}
    assert not learned & held


def test_a_loader_without_batches_gives_examples_alone() -> None:
    found = feed(batch_size=None, shuffle=True)
    assert sorted(float(found.next()[0]) for _ in range(12)) == [float(index) for index in range(12)]


class Stateful:
    """A loader that keeps its own place."""

    def __init__(self) -> None:
        self.at = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Any:
        while self.at < 5:
            self.at += 1
            yield torch.tensor(self.at)
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def test_a_loader_that_keeps_its_own_place_is_asked_for_it() -> None:
    begun = feeds(Stateful(), (), ratio=0.1, seed=0)[0]
    assert taken(begun, 8).tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    resumed = feeds(Stateful(), (), ratio=0.1, seed=0)[0]
    resumed.load_state_dict(begun.state_dict())
    assert taken(resumed, 3).tolist() == [4, 5, 1]


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Any:
        yield torch.zeros(1)


def test_what_cannot_be_gone_back_to_is_refused() -> None:
    for source in (DataLoader(Stream()), [torch.zeros(1)]):
        with pytest.raises(ConfigError, match=r"ESP-2707.*state_dict"):
            feeds(source, (), ratio=0.1, seed=0)


def test_the_place_in_other_data_is_refused() -> None:
    state = feed().state_dict()
    for other in (feed(seed=1), feed(Augmented(30))):
        with pytest.raises(ConfigError, match="ESP-2706"):
            other.load_state_dict(state)
