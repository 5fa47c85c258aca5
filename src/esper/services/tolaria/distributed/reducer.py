"""Gradients of newborns under ``DistributedDataParallel``, whose own reducer knows only what was there when it was made."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from esper.errors import ConfigError

KEY = "_esper_reducer"
"""Where a DDP keeps its reducer of newborns: a plain attribute, so that both live and end together."""


def reducer_of(ddp: DistributedDataParallel) -> "NewbornReducer":
    """Return the one reducer of a DDP; it outlives a run, as the newborns do."""
    reducer: NewbornReducer | None = vars(ddp).get(KEY)
    if reducer is None:
        reducer = vars(ddp)[KEY] = NewbornReducer(ddp)
    return reducer


class NewbornReducer:
    """Averages the gradients of parameters that joined after DDP was made, once per synchronised backward pass.

    At the end of the pass, before ``backward`` returns, whatever the newborns have accumulated goes out in one bucket per
    type and device: divided by the number of ranks, then summed, as DDP does. So it is done before gradients are unscaled or
    clipped. A pass whose forward ran under ``no_sync`` accumulates only; the next synchronised one reduces the whole.

    A newborn that no rank used keeps the gradient it had. One that some rank used takes the mean, zero where it was not used.

    Args:
        ddp: The model as its user trains it; the parameters that its model has now are those that it reduces itself.
    """

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp, self._model = ddp, cast(nn.Module, ddp.module)
        self._known = {id(parameter): parameter for parameter in self._model.parameters()}
        self._marks: dict[nn.Parameter, RemovableHandle] = {}
        self._used: set[nn.Parameter] = set()
        self._awaited = False
        ddp.register_forward_hook(self._after_forward)

    @property
    def newborns(self) -> tuple[nn.Parameter, ...]:
        """The parameters that it reduces, in the model's order."""
        return tuple(self._marks)

    def follow(self) -> None:
        """Reduce exactly the parameters that DDP does not.

        Raises:
            ConfigError: If the model lost a parameter that DDP waits for.
        """
        present = {id(parameter): parameter for parameter in self._model.parameters()}
        if self._known.keys() - present.keys():
            raise ConfigError(
                "a graft that DistributedDataParallel was made with is gone",
                why="its reducer waits for the gradients of those very parameters",
                todo="make a new DistributedDataParallel of the model, and attach to that",
                code="ESP-2142",
            )
        for handle in self._marks.values():
            handle.remove()
        newborns = [p for p in present.values() if id(p) not in self._known and p.requires_grad]
        # A hook on a parameter must not hold the reducer: the collector does not see that cycle, and DDP would live for ever.
        mark = self._used.add
        self._marks = {p: p.register_post_accumulate_grad_hook(mark) for p in newborns}  # type: ignore[no-untyped-call]
        self._used &= set(newborns)

    def _after_forward(self, _ddp: nn.Module, _inputs: Any, output: object) -> None:
        """Make the backward pass of this forward end with a reduction, on every rank, whatever it uses there."""
        self._check_join()
        if not (self._marks and torch.is_grad_enabled() and self._ddp.require_backward_grad_sync):
            return
        for tensor in _tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(self._await_end)  # type: ignore[no-untyped-call]

    def _await_end(self, _gradient: Tensor) -> None:
        if not self._awaited:
            self._awaited = True
            # Queued from the outermost pass, so that it runs when that ends, not when a checkpointed part of it does.
            torch.autograd.Variable._execution_engine.queue_callback(self._reduce)

    @torch.no_grad()
    def _reduce(self) -> None:
        self._awaited = False
        unused = {p for p in self._marks if p not in self._used}
        for bucket in self._buckets():
            average_gradients(bucket, unused, self._ddp.process_group)
        self._used.clear()

    def _buckets(self) -> list[list[nn.Parameter]]:
        buckets: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in self._marks:
            buckets.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        return list(buckets.values())

    def _check_join(self) -> None:
        if getattr(getattr(self._ddp, "_join_config", None), "enable", False):
            raise ConfigError(
                "a growing model cannot train inside ddp.join()",
                why="a rank whose data have ended would pass no boundary, and the others would wait for it there",
                todo="give every rank equally many batches, as DistributedSampler does; they may differ in size",
                code="ESP-2143",
            )


def average_gradients(bucket: list[nn.Parameter], unused: set[nn.Parameter], group: dist.ProcessGroup | None) -> None:
    """Replace the gradients of a bucket by their mean over the ranks."""
    size = dist.get_world_size(group)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
    used = torch.tensor([float(p not in unused) for p in bucket], dtype=bucket[0].dtype).to(bucket[0].device)
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), used]).div_(size)
    dist.all_reduce(flat, group=group)
    sizes = [*(gradient.numel() for gradient in gradients), len(bucket)]
    *means, anywhere = torch.split(flat, sizes)
    # Where all are used here, all are used somewhere, and nothing has to be read back from the device.
    left = [bool(share == 0) for share in anywhere.tolist()] if unused.intersection(bucket) else [False] * len(bucket)
    for parameter, gradient, mean, nowhere in zip(bucket, gradients, means, left, strict=True):
        if not nowhere:
            parameter.grad = gradient.copy_(mean.view(gradient.shape))


def _tensors_in(value: object) -> Iterator[Tensor]:
    """Yield every tensor in nested containers, those of dataclasses too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif is_dataclass(value):
        for part in fields(value):
            yield from _tensors_in(getattr(value, part.name))
