"""Which examples are trained on and which are held out."""

from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from esper.errors import ConfigError
from esper.services.tolaria.distributed.team import Team
from esper.services.tolaria.trainer.drawing import Sampled, Shuffled
from esper.services.tolaria.trainer.loaders import Alternate, Feed, OwnFeed, Recipe, StatefulLoader, Unmoved
from esper.services.tolaria.trainer.sharing import Dealt, Shared, Whole


def feeds(
    dataloader: Any, held_out: Iterable[Any] | None, *, ratio: float, seed: int, team: Team | None = None
) -> tuple[Feed, Iterable[Any]]:
    """Return the training batches and the held-out ones.

    Of several processes each gives the same loaders, and gets its share: training batches in turn, held-out examples in turn.
    A sampler with ``num_replicas`` and ``rank``, and a training loader that keeps its own place, have shared out already.

    Args:
        dataloader: The user's training loader.
        held_out: The user's validation loader; where it is None a share of the training data is held out.
        ratio: That share.
        seed: Of the split and of the order.
        team: The processes; this one alone by default.

    Raises:
        ConfigError: If the loader is empty, cannot be gone back to, cannot be split, or cannot be shared out.
    """
    team = team or Team()
    if held_out is None:
        return _split(dataloader, ratio=ratio, seed=seed, team=team)
    return _training(dataloader, seed, team), _unmoved(held_out, seed, team)


def check_equal(team: Team, feed: Feed) -> None:
    """Refuse training data of which processes have different numbers of batches: one would wait for the other for ever.

    Raises:
        ConfigError: If they do.
    """
    lengths = [int(row[0]) for row in team.gather([float(len(feed))])]
    if len(set(lengths)) > 1:
        raise _not_shared_out(
            f"processes have {', '.join(map(str, lengths))} batches, and all must take equally many steps"
        )


def _training(dataloader: Any, seed: int, team: Team) -> Feed:
    if hasattr(dataloader, "state_dict") and hasattr(dataloader, "load_state_dict"):
        if team.size > 1 and _is_indexed(dataloader) and _sharding(dataloader) is None:
            raise _not_shared_out(f"a {type(dataloader).__name__} that keeps its own place has all the data")
        return _not_empty(OwnFeed(dataloader))
    if not _is_indexed(dataloader):
        raise ConfigError(
            f"the training loader is a {type(dataloader).__name__} that cannot be gone back to",
            why="a rollback or a resume repeats batches, and these have no index and no state",
            todo="give a DataLoader of a map-style data set, or a loader with state_dict and load_state_dict",
            code="ESP-2707",
        )
    batched = dataloader.batch_sampler is not None
    order = _dealt_out(_order(dataloader), dataloader, team)
    return _not_empty(StatefulLoader(Recipe(dataloader.dataset, order, dataloader, batched=batched), seed))


def _dealt_out(order: Shuffled | Sampled, dataloader: DataLoader[Any], team: Team) -> Whole | Shared:
    """Return this process's share of an order, which a sampler of the user's own may be already."""
    sharding = None if team.size == 1 else _sharding(dataloader)
    if sharding is not None and (sharding.num_replicas, sharding.rank) != (team.size, team.rank):
        raise _not_shared_out(
            f"its {type(sharding).__name__} is for process {sharding.rank} of {sharding.num_replicas}, and this one is "
            f"{team.rank} of {team.size}"
        )
    if team.size == 1 or sharding is not None:
        return Whole(order, team)
    return Shared(order, team, batched=dataloader.batch_sampler is not None, drop_last=bool(dataloader.drop_last))


def _unmoved(held_out: Iterable[Any], seed: int, team: Team) -> Iterable[Any]:
    """Return held-out batches in a fixed order where that can be had; a loader of another kind is taken at its word."""
    if not _is_indexed(held_out):
        return held_out if team.size == 1 else Alternate(held_out, team)
    if team.size > 1 and _sharding(held_out) is not None:
        raise _not_shared_out(
            "a sampler that shares held-out examples out repeats some, and their mean would be another one"
        )
    order: Shuffled | Sampled = Sampled(held_out)
    if _is_plain(held_out):
        order = _fixed(held_out, team)
    batched = held_out.batch_sampler is not None
    mine = Whole(order) if team.size == 1 else Dealt(order, team, batched=batched)
    return Unmoved(Recipe(held_out.dataset, mine, held_out, batched=batched), seed)


def _fixed(held_out: DataLoader[Any], team: Team) -> Shuffled:
    """Return the order of held-out data, in batches that give each process one of the loader's size."""
    data: Any = held_out.dataset
    count, size = len(data), held_out.batch_size or 1
    if held_out.drop_last:  # counted by the loader's own batches, whatever the number of processes
        count -= count % size
    return Shuffled(count, size * team.size, drop_last=False, shuffle=False)


def _split(dataloader: Any, *, ratio: float, seed: int, team: Team) -> tuple[Feed, Iterable[Any]]:
    """Hold out a share of the data set, and give the rest to a loader like the one that was given."""
    data: Any = getattr(dataloader, "dataset", None)
    total = len(data) if data is not None and hasattr(data, "__len__") else 0
    if total < 2:
        raise ConfigError(
            "the data set cannot be split",
            why="it has no length, or fewer than two examples, so none can be held out for validation",
            todo="give a map-style data set with at least two examples, or a loader of held-out examples",
            code="ESP-2161",
        )
    if not _is_plain(dataloader):
        own = dataloader.sampler if type(dataloader.batch_sampler) is BatchSampler else dataloader.batch_sampler
        raise ConfigError(
            "the loader cannot be split",
            why=f"it has a {type(own).__name__} of its own",
            todo="give a loader of held-out examples too, or one with shuffle=True or False",
            code="ESP-2164",
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, int(total * ratio))
    size = dataloader.batch_size
    shuffle = type(dataloader.sampler) is RandomSampler
    kept = Shuffled(total - count, size, drop_last=dataloader.drop_last, shuffle=shuffle)
    training = StatefulLoader(Recipe(Subset(data, order[count:]), _dealt_out(kept, dataloader, team), dataloader), seed)
    fixed = Shuffled(count, size * team.size, drop_last=False, shuffle=False)
    mine = Whole(fixed) if team.size == 1 else Dealt(fixed, team, batched=True)
    aside = Recipe(Subset(data, sorted(order[:count])), mine, _alone(dataloader))
    return _not_empty(training), Unmoved(aside, seed)


def _is_plain(dataloader: DataLoader[Any]) -> bool:
    """Tell whether a loader draws its order anew; one with an order of its own cannot be split without losing it."""
    batches = type(dataloader.batch_sampler) is BatchSampler and dataloader.batch_size is not None
    return batches and type(dataloader.sampler) in (RandomSampler, SequentialSampler)


def _sharding(dataloader: DataLoader[Any]) -> Any:
    """Return the sampler of a loader that shares the data out among processes, as ``DistributedSampler`` does, or None."""
    inner = getattr(dataloader.batch_sampler, "sampler", None)
    samplers = (dataloader.sampler, dataloader.batch_sampler, inner)
    return next((each for each in samplers if hasattr(each, "num_replicas") and hasattr(each, "rank")), None)


def _not_shared_out(why: str) -> ConfigError:
    return ConfigError(
        "a loader does not fit a training in several processes",
        why=why,
        todo="give every process the same plain loader, which the trainer shares out; or one for training whose "
        "DistributedSampler was made in this process",
        code="ESP-2714",
    )


def _order(dataloader: DataLoader[Any]) -> Shuffled | Sampled:
    sampler = dataloader.sampler
    whole = not isinstance(sampler, RandomSampler) or not (sampler.replacement or sampler._num_samples)
    if not (_is_plain(dataloader) and whole):
        return Sampled(dataloader)
    data: Any = dataloader.dataset
    shuffle = type(sampler) is RandomSampler
    return Shuffled(len(data), dataloader.batch_size or 1, drop_last=dataloader.drop_last, shuffle=shuffle)


def _alone(dataloader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader without workers that collates alike: a held-out share is small, and needs no processes."""
    return DataLoader(dataloader.dataset, batch_size=dataloader.batch_size, collate_fn=dataloader.collate_fn)


def _is_indexed(dataloader: Any) -> TypeGuard[DataLoader[Any]]:
    """Tell whether every batch of a loader can be asked for by number."""
    if not isinstance(dataloader, DataLoader) or isinstance(dataloader.dataset, IterableDataset):
        return False
    return hasattr(dataloader.dataset, "__getitem__") and hasattr(dataloader.sampler, "__len__")


def _not_empty(feed: Feed) -> Feed:
    if len(feed) == 0:
        raise ConfigError(
            "the loader is empty",
            why="no batch is left to train on, or drop_last drops it",
            todo="lower batch_size or held_out_ratio",
            code="ESP-2162",
        )
    return feed
