"""Operations that go wrong on purpose, as an extension module: each must be caught by the forge.

Importing it installs them: in a test, and by name (``extensions=("esper.testing.faults",)``) in the children of a forge.
Every one says of itself that it returns its input. Run none outside a child.
"""

import ctypes
import errno
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esper.blueprints.bodies import Body, register_body
from esper.ir import BlueprintIR, Graph, Layout, OpSpec, Use, ops
from esper.reference import register_formula

_BLOCK_BYTES = 2**28
_BLOCKS = 256
"""64 GiB: a process without a limit gives up there."""


class Fault(StrEnum):
    """What goes wrong; the value is the name of the operation."""

    HANG = "faults.hang"
    SEGFAULT = "faults.segfault"
    KILL = "faults.kill"
    MEMORY = "faults.memory"
    RAISE = "faults.raise"
    WRONG = "faults.wrong"
    WRONG_GRADIENT = "faults.wrong_gradient"
    NAN = "faults.nan"
    OVERFLOW = "faults.overflow"
    UNSTEADY = "faults.unsteady"
    DRAWS = "faults.draws"
    TAMPER = "faults.tamper"
    MODE = "faults.mode"
    COSTLY = "faults.costly"
    SLOW = "faults.slow"
    NOISY = "faults.noisy"
    CALLS_HOME = "faults.calls_home"
    WRITES = "faults.writes"


def faulty(fault: Fault, *, channels: int = 4) -> BlueprintIR:
    """Return a blueprint with one faulty operation between two sound ones; it passes every static check.

    Args:
        fault: What goes wrong.
        channels: Its width; another one is another blueprint.
    """
    graph = Graph(Layout.FEATURES, channels)
    hidden = graph.apply(fault, graph.linear(graph.input, out=6))
    return graph.finish(graph.linear(hidden, out=channels, init="zero"), name="faulty")


def _hang(x: Tensor) -> Tensor:
    while True:
        time.sleep(0.01)


def _segfault(x: Tensor) -> Tensor:
    ctypes.string_at(0)
    return x


def _kill(x: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return x


def _memory(x: Tensor) -> Tensor:
    held = [torch.empty(_BLOCK_BYTES, dtype=torch.uint8) for _ in range(_BLOCKS)]
    return x + float(len(held) - _BLOCKS)


def _raise(x: Tensor) -> Tensor:
    raise ValueError("planted")


def _wrong(x: Tensor) -> Tensor:
    return 1.01 * x


class _Doubled(torch.autograd.Function):
    """The identity with twice its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 2.0 * grads[0]


def _wrong_gradient(x: Tensor) -> Tensor:
    doubled: Tensor = _Doubled.apply(x)  # type: ignore[no-untyped-call]
    return doubled


def _nan(x: Tensor) -> Tensor:
    return x * float("nan")


def _overflow(x: Tensor) -> Tensor:
    """Right for inputs of ordinary size."""
    return torch.where(x.abs() < 1e3, x, float("inf"))


_calls = itertools.count(1)


def _unsteady(x: Tensor) -> Tensor:
    return x * (1.0 + 1e-12 * next(_calls)) if x.dtype is torch.float64 else x + 1e-6 * (next(_calls) % 2)


def _draws(x: Tensor) -> Tensor:
    torch.rand(1)
    return x.clone()


def _tamper(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.detach().mul_(2.0)
    return 0.5 * x


class _Mode(torch.nn.Module):
    """Different in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training else 0.9 * x


def _costly(x: Tensor) -> Tensor:
    """Work that is not declared."""
    return x + 0.0 * (x @ x.new_ones(x.shape[-1], x.shape[-1]))


def _slow(x: Tensor) -> Tensor:
    time.sleep(0.02)
    return x.clone()


def _noisy(x: Tensor) -> Tensor:
    """Right, but it prints to where the child's answers go, and reads where its orders come from."""
    os.write(1, b"printed by a library\n")
    print("printed by Python")  # noqa: T201
    os.read(0, 1)
    return x.clone()


def _calls_home(x: Tensor) -> Tensor:
    """Right where no network is to be found; a port that refuses was reached."""
    with socket.socket() as caller:
        reached = caller.connect_ex(("127.0.0.1", 9)) != errno.ENETUNREACH
    return 2.0 * x if reached else x.clone()


def _writes(x: Tensor) -> Tensor:
    """Right where no file can be made in the working folder; an empty one is enough, and is removed again."""
    target = f"esper-fault-{os.getpid()}"
    try:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    except OSError:
        return x.clone()
    os.unlink(target)
    return 2.0 * x


def _always(body: Body) -> Callable[[Use, Mapping[str, Tensor]], Body]:
    return lambda use, tensors: body


def _identity(
    use: Use, own: Mapping[str, NDArray[np.float64]], inputs: Sequence[NDArray[np.float64]], training: bool
) -> NDArray[np.float64]:
    return inputs[0].copy()


_BODIES: Mapping[Fault, Body] = {
    Fault.HANG: _hang,
    Fault.SEGFAULT: _segfault,
    Fault.KILL: _kill,
    Fault.MEMORY: _memory,
    Fault.RAISE: _raise,
    Fault.WRONG: _wrong,
    Fault.WRONG_GRADIENT: _wrong_gradient,
    Fault.NAN: _nan,
    Fault.OVERFLOW: _overflow,
    Fault.UNSTEADY: _unsteady,
    Fault.DRAWS: _draws,
    Fault.TAMPER: _tamper,
    Fault.COSTLY: _costly,
    Fault.SLOW: _slow,
    Fault.NOISY: _noisy,
    Fault.CALLS_HOME: _calls_home,
    Fault.WRITES: _writes,
}


def _install() -> None:
    for fault in Fault:
        ops.register(OpSpec(fault.value))
        register_formula(fault.value, _identity)
    for fault, body in _BODIES.items():
        register_body(fault.value, _always(body))
    register_body(Fault.MODE.value, lambda use, tensors: _Mode())


_install()
