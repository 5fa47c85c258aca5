"""One run of a kernel on generated input, in the process that calls it."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from esper.blueprints.kernel import Kernel, unpack_kernel
from esper.blueprints.module import KernelModule
from esper.contracts.kernel import InferenceForm
from esper.errors import KernelRejected
from esper.ir import digest_of
from esper.runtime.clock import SystemClock
from esper.services.tezzeret.inference.backends import load
from esper.services.tezzeret.inference.fusion import fuse
from esper.services.tezzeret.inference.opening import opened
from esper.services.tezzeret.orders import Executed, Execution
from esper.signing.keys import KeyRing, Trusted

_RUNS = 10
_BUDGET_S = 1.0
"""No further run is begun after that."""


def executed(order: Execution) -> Executed:
    """Run a kernel, or a form of it once its seal holds.

    Raises:
        KernelRejected: If kernel or form are not what they should be.
    """
    if digest_of(order.kernel) != order.kernel_id:
        raise KernelRejected("the kernel was not run", why="its bytes have another digest", todo="look after the store")
    kernel = unpack_kernel(order.kernel)
    program = _program(order, kernel)
    generator = torch.Generator().manual_seed(order.seed)
    shape = tuple(order.shape)
    x = torch.randn(shape, generator=generator).to(next(iter(kernel.state.values())).dtype)
    with torch.inference_mode():
        before_mb = _peak_mb(reset=True)
        output = program(x)
        times: list[float] = []
        ends = time.perf_counter() + _BUDGET_S
        while len(times) < _RUNS and (not times or time.perf_counter() < ends):
            began = time.perf_counter()
            program(x)
            times.append(time.perf_counter() - began)
        after_mb = _peak_mb(reset=False)
    grown_mb = None if before_mb is None or after_mb is None else max(0.0, after_mb - before_mb)
    return Executed(tuple(output.shape), statistics.median(times) * 1e3, len(times), grown_mb)


def _program(order: Execution, kernel: Kernel) -> Callable[[Tensor], Tensor]:
    if order.form is None:
        return KernelModule(kernel.ir, dict(kernel.state)).eval()
    form = InferenceForm.model_validate_json(order.form)
    ring = KeyRing(msgspec.json.decode(order.ring, type=tuple[Trusted, ...]))
    verified = opened(form, order.seal, order.data, kernel.ir.digest, ring, SystemClock())
    return load(verified, fuse(kernel.ir, kernel.state).state)


def _peak_mb(*, reset: bool) -> float | None:
    """Return the largest resident size of this process since the last reset, or None where the system does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
