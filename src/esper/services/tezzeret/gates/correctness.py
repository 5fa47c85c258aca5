"""Does the kernel compute what its blueprint says, forwards and backwards, and is it born neutral and alive?"""

import torch
from torch import Tensor

from esper.blueprints.module import KernelModule
from esper.contracts.kernel import GateResult
from esper.reference import buffers_after, evaluate
from esper.services.tezzeret.gates.birth import check_birth_measured
from esper.services.tezzeret.gates.slopes import check_slopes
from esper.services.tezzeret.gates.trial import Array, Trial, largest
from esper.services.tezzeret.gates.verdict import Findings
from esper.services.tezzeret.probes import Probe


def correctness(trial: Trial) -> GateResult:
    """Compare values with the numpy reference, gradients with finite differences, and law 2 with what happens."""
    found = Findings()
    _compare_values(trial, found)
    _compare_buffers(trial, found)
    _compare_repeats(trial, found)
    _compare_formats(trial, found)
    if not found.reasons:  # a wrong value explains a wrong gradient
        check_slopes(trial, found)
    check_birth_measured(trial, found)
    return found.result()


def _compare_values(trial: Trial, found: Findings) -> None:
    """Compare at generic weights: in float64, where a formula shows, and in the kernel's own type."""
    modules = {"float64": trial.grown_module(torch.float64), trial.kernel.dtype: trial.grown_module(trial.dtype)}
    worst = dict.fromkeys(modules, 0.0)
    modes = (False,) if trial.is_stateless else (False, True)  # repeats are compared below, to the bit
    for probe in trial.probes.all:
        for training in modes:
            expected = _expected(trial, probe, training)
            for name, module in modules.items():
                error = _error(trial, module, probe, training, expected)
                worst[name] = max(worst[name], error)
                allowed = _allowed(trial, name)
                mode = "training" if training else "evaluation"
                found.expect(
                    error <= allowed,
                    f"differs from the reference in {mode} at batch {probe.batch}, {name}: "
                    f"{error:.3g} of the largest value, {allowed:g} is allowed",
                )
    found.measure("error_float64", worst["float64"])
    found.measure("error_own_dtype", worst[trial.kernel.dtype])


def _allowed(trial: Trial, name: str) -> float:
    return trial.config.formula_tolerance if name == "float64" else trial.config.dtype_tolerance[name]


def _expected(trial: Trial, probe: Probe, training: bool) -> Array:
    entered = trial.input(probe).to(torch.float64).numpy()
    return evaluate(trial.ir, trial.grown_arrays, entered, training=training)


def _error(trial: Trial, module: KernelModule, probe: Probe, training: bool, expected: Array) -> float:
    """Return the largest difference, relative to the largest value."""
    x = trial.input(probe)
    kind = next(module.parameters(), x).dtype
    with torch.no_grad():
        y = _same_mode(module, trial, training)(x.to(kind))
    if y.shape != expected.shape:
        return float("inf")
    reference = torch.from_numpy(expected)
    return largest(y.to(torch.float64) - reference) / max(largest(reference), 1e-30)


def _same_mode(module: KernelModule, trial: Trial, training: bool) -> KernelModule:
    """Set the mode; in training mode buffers start again from what they were, as each forward pass moves them."""
    module.train(training)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(trial.grown[name])
    return module


def _compare_buffers(trial: Trial, found: Findings) -> None:
    """Compare what a training pass leaves in buffers; an evaluation must leave them alone."""
    names = [name for name, tensor in trial.ir.tensors.items() if not tensor.trainable]
    if not names:
        return
    probe, module = trial.probes.odd, trial.grown_module(torch.float64)
    x = trial.input(probe).to(torch.float64)
    expected = buffers_after(trial.ir, trial.grown_arrays, x.numpy())
    with torch.no_grad():
        module.train()(x)
        after = {name: buffer.clone() for name, buffer in module.named_buffers()}
        module.eval()(x)
    for name in names:
        target = torch.from_numpy(expected[name]) if name in expected else trial.grown[name].to(torch.float64)
        error = largest(after[name] - target) / max(largest(target), 1e-30)
        found.expect(error <= trial.config.formula_tolerance, f"buffer {name!r} is off by {error:.3g} after training")
        found.expect(torch.equal(module.get_buffer(name), after[name]), f"evaluation changes the buffer {name!r}")


def _compare_repeats(trial: Trial, found: Findings) -> None:
    """Compare two runs of two builds, and training with evaluation where nothing may differ."""
    x = trial.input(trial.probes.batch)
    first, second = trial.grown_module(trial.dtype), trial.grown_module(trial.dtype)
    with torch.no_grad():
        y = _bits(first.eval()(x))
        found.expect(torch.equal(y, _bits(first(x))), "is not deterministic: two runs differ")
        found.expect(torch.equal(y, _bits(second.eval()(x))), "is not deterministic: two builds differ")
        if trial.is_stateless:
            found.expect(torch.equal(y, _bits(second.train()(x))), "training and evaluation differ without a reason")


def _compare_formats(trial: Trial, found: Findings) -> None:
    """Compare a channels-last map, which needs no gradient itself, with a plain one: hosts have both."""
    x = trial.input(trial.probes.batch)
    if x.dim() != 4:
        return
    results: list[tuple[Tensor, Tensor]] = []
    for entered in (x, x.contiguous(memory_format=torch.channels_last)):
        module = trial.grown_module(trial.dtype).train()
        y = module(entered)
        y.float().square().mean().backward()
        grads = [p.grad.double().flatten() for p in module.parameters() if p.grad is not None]
        results.append((y.detach().double(), torch.cat(grads)))
    allowed = trial.config.dtype_tolerance[trial.kernel.dtype]
    for what, plain, last in zip(("values", "gradients"), *results, strict=True):
        error = largest(plain - last) / max(largest(plain), 1e-30)
        found.expect(error <= allowed, f"{what} on channels-last maps differ by {error:.3g}; {allowed:g} is allowed")


def _bits(values: Tensor) -> Tensor:
    """Return values so that equal means equal bits, not-a-number included."""
    return values.contiguous().view(torch.uint8) if values.dim() else values.reshape(1).view(torch.uint8)
