"""Which examples are trained on and which are held out."""

from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from esper.errors import ConfigError
from esper.services.tolaria.trainer.drawing import Sampled, Shuffled
from esper.services.tolaria.trainer.loaders import Feed, OwnFeed, Recipe, StatefulLoader, Unmoved


def feeds(dataloader: Any, held_out: Iterable[Any] | None, *, ratio: float, seed: int) -> tuple[Feed, Iterable[Any]]:
    """Return the training batches and the held-out ones.

    Args:
        dataloader: The user's training loader.
        held_out: The user's validation loader; where it is None a share of the training data is held out.
        ratio: That share.
        seed: Of the split and of the order.

    Raises:
        ConfigError: If the loader is empty, cannot be gone back to, or cannot be split.
    """
    if held_out is None:
        return _split(dataloader, ratio=ratio, seed=seed)
    return _training(dataloader, seed), _unmoved(held_out, seed)


def _training(dataloader: Any, seed: int) -> Feed:
    if hasattr(dataloader, "state_dict") and hasattr(dataloader, "load_state_dict"):
        return _not_empty(OwnFeed(dataloader))
    if not _is_indexed(dataloader):
        raise ConfigError(
            f"the training loader is a {type(dataloader).__name__} that cannot be gone back to",
            why="a rollback or a resume repeats batches, and these have no index and no state",
            todo="give a DataLoader of a map-style data set, or a loader with state_dict and load_state_dict",
            code="ESP-2707",
        )
    batched = dataloader.batch_sampler is not None
    return _not_empty(StatefulLoader(Recipe(dataloader.dataset, _order(dataloader), dataloader, batched=batched), seed))


def _unmoved(held_out: Iterable[Any], seed: int) -> Iterable[Any]:
    """Return held-out batches in a fixed order where that can be had; a loader of another kind is taken at its word."""
    if not _is_indexed(held_out):
        return held_out
    order: Shuffled | Sampled = Sampled(held_out)
    if _is_plain(held_out):
        data: Any = held_out.dataset
        order = Shuffled(len(data), held_out.batch_size or 1, drop_last=held_out.drop_last, shuffle=False)
    return Unmoved(Recipe(held_out.dataset, order, held_out, batched=held_out.batch_sampler is not None), seed)


def _split(dataloader: Any, *, ratio: float, seed: int) -> tuple[Feed, Iterable[Any]]:
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
    training = StatefulLoader(Recipe(Subset(data, order[count:]), kept, dataloader), seed)
    aside = Recipe(
        Subset(data, sorted(order[:count])), Shuffled(count, size, drop_last=False, shuffle=False), _alone(dataloader)
    )
    return _not_empty(training), Unmoved(aside, seed)


def _is_plain(dataloader: DataLoader[Any]) -> bool:
    """Tell whether a loader draws its order anew; one with an order of its own cannot be split without losing it."""
    batches = type(dataloader.batch_sampler) is BatchSampler and dataloader.batch_size is not None
    return batches and type(dataloader.sampler) in (RandomSampler, SequentialSampler)


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
