"""The export certificate: a kernel can be traced whole, in training and in evaluation, for any batch and any extent."""

import time

import torch
from torch import Tensor, nn

from esper.blueprints.module import KernelModule
from esper.contracts.kernel import Certificate
from esper.errors import CompilationError
from esper.ir import BlueprintIR
from esper.services.tezzeret.gates.trial import Trial, largest

_BOTH = {True: "train", False: "eval"}


def certify(trial: Trial) -> Certificate:
    """Trace a kernel, and hold what was traced against the kernel itself.

    It is traced once on three examples of odd extents, at generic weights, and then run on batches of 1, 3 and 8 with other
    extents; values, gradients and what a training pass leaves in buffers are compared.

    Args:
        trial: The kernel on the test bench.

    Returns:
        What was proven.

    Raises:
        CompilationError: If it cannot be traced, or only for some sizes, or computes something else then.
    """
    began = time.perf_counter()
    # Where training and evaluation are the same operations, one trace stands for both.
    worst, operators = 0.0, 0
    for training in (False,) if trial.is_stateless else (False, True):
        traced = trace(trial.grown_module(trial.dtype).train(training), trial)
        operators = max(operators, sum(node.op == "call_function" for node in traced.graph.nodes))
        worst = max(worst, _error(traced.module(), trial, training))
    allowed = trial.config.dtype_tolerance[trial.kernel.dtype]
    if not worst <= allowed:
        raise _failed(trial.ir, f"its traced graph differs by {worst:.3g} of the largest value; {allowed:g} is allowed")
    return Certificate(
        exporter=f"torch.export {torch.__version__}",
        modes=tuple(_BOTH.values()),
        dynamic_axes=dynamic_axes(trial.ir),
        operators=operators,
        max_error=worst,
        took_ms=(time.perf_counter() - began) * 1e3,
    )


def trace(module: nn.Module, trial: Trial) -> torch.export.ExportedProgram:
    """Export a module that takes what a kernel takes, with batch and extent left open.

    Raises:
        CompilationError: If it cannot be traced.
    """
    x = trial.input(trial.probes.odd)
    import torch._dynamo.config as tracing  # half of torch's start, which no kernel of level 0 needs

    axes = dict.fromkeys(dynamic_axes(trial.ir), torch.export.Dim.DYNAMIC)
    try:
        # Sizes are new symbols each time: to remember what operations give takes a third of the time, and is seldom asked for.
        with tracing.patch(fake_tensor_cache_enabled=False):
            return torch.export.export(module, (x,), dynamic_shapes=(axes,), strict=False)
    except Exception as wrong:
        raise _failed(trial.ir, f"{type(wrong).__name__}: {str(wrong)[:300]}") from wrong


def dynamic_axes(ir: BlueprintIR) -> tuple[int, ...]:
    """Return the axes of an input that may have any size: the batch and the positions."""
    first = 2 if ir.layout.is_channels_first else 1
    return (0, *range(first, first + ir.layout.rank))


def _error(traced: nn.Module, trial: Trial, training: bool) -> float:
    worst = 0.0
    for probe in trial.probes.all:
        kernel = trial.grown_module(trial.dtype).train(training)
        _put_back(traced, kernel)
        x = trial.input(probe)
        try:
            pairs = zip(_pass(kernel, x), _pass(traced, x), strict=True)
            worst = max(worst, *(_relative(expected, found) for expected, found in pairs))
        except Exception as wrong:
            raise _failed(
                trial.ir, f"with the input {tuple(x.shape)}: {type(wrong).__name__}: {str(wrong)[:300]}"
            ) from wrong
    return worst


def _put_back(traced: nn.Module, kernel: KernelModule) -> None:
    """Give the traced module the kernel's buffers: each training pass moves them."""
    buffers = dict(traced.named_buffers())
    with torch.no_grad():
        for name, buffer in kernel.named_buffers():
            buffers[name].copy_(buffer)


def _pass(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the value, every gradient, and the buffers afterwards."""
    entered = x.detach().clone().requires_grad_()
    module.zero_grad()
    y = module(entered)
    y.float().square().mean().backward()
    grads = [p.grad for _, p in sorted(module.named_parameters()) if p.grad is not None]
    buffers = [buffer.clone() for _, buffer in sorted(module.named_buffers())]
    found = [y.detach(), *grads, *buffers]
    return found if entered.grad is None else [*found, entered.grad]


def _relative(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    return largest(found.double() - expected.double()) / max(largest(expected), 1e-30)


def _failed(ir: BlueprintIR, why: str) -> CompilationError:
    return CompilationError(f"blueprint {ir.name!r} has no export certificate", why=why, code="ESP-7130")
