"""The processes that train one model: what one of them knows is told to all, and what one of them cannot do none does."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from esper.errors import Conflict, Unavailable
from esper.services.tolaria.distributed.reducer import average_gradients
from esper.services.tolaria.distributed.words import error_from_bytes, error_to_bytes


class Team:
    """One process alone: it leads, and everything is as it says.

    Attributes:
        rank: Number of this process; 0 leads.
        size: How many there are.
        sharded: Whether each process holds its own share of the parameters.
        buffers_follow: Whether every process takes the leader's buffers, as DDP does before each forward pass.
        on_cpu: Whether what the processes say travels without waiting for a device.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False
    buffers_follow: bool = False
    on_cpu: bool = True

    @property
    def leads(self) -> bool:
        """Whether this process decides, and runs the services."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Tell whether any process raises the flag."""
        return any(values[0] != 0 for values in self.gather([float(flag)]))

    def mean(self, value: float) -> float:
        """Return the mean of every process's value, the same bits everywhere."""
        values = [row[0] for row in self.gather([value])]
        return sum(values) / len(values)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return every process's numbers, by rank; each gives equally many."""
        return [[float(value) for value in values]]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every process's bytes, by rank."""
        return [data]

    def broadcast(self, data: bytes) -> bytes:
        """Return the leader's bytes."""
        return data

    def synchronise(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that the leader's have."""

    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let the gradients of parameters be their mean over the processes; one that has none anywhere keeps none."""

    def told(self, make: Callable[[], bytes]) -> bytes:
        """Return what ``make`` returns at the leader, where alone it is called.

        Raises:
            Exception: What it raised there; at the others an ``EsperError`` that says so.
        """
        return make()

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """Let the block fail everywhere where it fails anywhere.

        Args:
            doing: What the block does, for the error.

        Raises:
            Unavailable: If it failed in another process only.
        """
        yield

    def agree(self, doing: str, *facts: object) -> None:
        """Make sure that every process says the same.

        Raises:
            Conflict: If they do not; training must not go on then.
        """


class Processes(Team):
    """The processes of a torch process group. Every method is collective: all call it, in the same order.

    Nothing is pickled: numbers travel as float64 tensors, everything else as bytes. Where the group is NCCL's they travel
    over the current CUDA device.

    Args:
        group: The process group; None is the default one.
        sharded: Whether each process holds its own share of the parameters.
        buffers_follow: Whether every process takes the leader's buffers.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, *, sharded: bool = False, buffers_follow: bool = False
    ) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.sharded, self.buffers_follow = sharded, buffers_follow
        self._first = 0 if group is None else dist.get_global_rank(group, 0)
        self.on_cpu = "gloo" in str(dist.get_backend_config(group))
        self._device = torch.device("cpu") if self.on_cpu else torch.device("cuda", torch.cuda.current_device())

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return every process's numbers, by rank; each gives equally many."""
        own = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        return [row.tolist() for row in self._gathered(own)]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every process's bytes, by rank."""
        sizes = [int(row) for row in self._gathered(self._size_of(data))]
        own = torch.zeros(max(sizes), dtype=torch.uint8, device=self._device)
        own[: len(data)] = _tensor(data).to(self._device)
        rows = self._gathered(own) if max(sizes) else [own] * self.size
        return [_bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, data: bytes) -> bytes:
        """Return the leader's bytes."""
        size = self._size_of(data)
        dist.broadcast(size, self._first, group=self._group)
        body = (
            _tensor(data).to(self._device) if self.leads else torch.empty(int(size), dtype=torch.uint8).to(self._device)
        )
        if len(body):
            dist.broadcast(body, self._first, group=self._group)
        return _bytes(body)

    def synchronise(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that the leader's have."""
        for tensor in tensors:
            value = tensor.detach().to(self._device).contiguous()
            dist.broadcast(value, self._first, group=self._group)
            if not self.leads:
                tensor.data.copy_(value)

    @torch.no_grad()
    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let the gradients of parameters be their mean over the processes; one that has none anywhere keeps none."""
        buckets: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
        for parameter in parameters:
            buckets.setdefault((parameter.dtype, parameter.device), []).append(parameter)
        for bucket in buckets.values():
            unused = {parameter for parameter in bucket if parameter.grad is None}
            average_gradients(bucket, unused, self._group)

    def told(self, make: Callable[[], bytes]) -> bytes:
        """Return what ``make`` returns at the leader, where alone it is called."""
        raised: Exception | None = None
        word = b""
        if self.leads:
            try:
                word = b"\0" + make()
            except Exception as error:
                raised, word = error, b"\1" + error_to_bytes(error)
        word = self.broadcast(word)
        if raised is not None:
            raise raised
        if word[:1] == b"\1":
            raise error_from_bytes(word[1:])
        return word[1:]

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """Let the block fail everywhere where it fails anywhere."""
        raised: Exception | None = None
        try:
            yield
        except Exception as error:
            raised = error
        words = self.gather_bytes(b"" if raised is None else error_to_bytes(raised))
        if raised is not None:
            raise raised
        for rank, word in enumerate(words):
            if word:
                raise Unavailable(f"{doing} failed on rank {rank}", why=str(error_from_bytes(word)))

    def agree(self, doing: str, *facts: object) -> None:
        """Make sure that every process says the same."""
        own = hashlib.sha256(repr((doing, *facts)).encode()).digest()
        words = self.gather_bytes(own)
        odd = [rank for rank, word in enumerate(words) if word != words[0]]
        if odd:
            raise Conflict(
                f"{doing}: ranks {', '.join(map(str, odd))} differ from rank 0",
                why="every rank must do the same at the same step, on parameters that are equal to the bit",
                todo="call growth's methods on every rank in the same order, leave the gradients to "
                "DistributedDataParallel, and resume from a checkpoint",
                code="ESP-6010",
            )

    def _gathered(self, own: Tensor) -> list[Tensor]:
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own, group=self._group)
        return rows

    def _size_of(self, data: bytes) -> Tensor:
        return torch.tensor(len(data), dtype=torch.int64, device=self._device)


def told_text(team: Team, make: Callable[[], str]) -> str:
    """Return the leader's text, everywhere."""
    return team.told(lambda: make().encode()).decode()


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
