"""Folding: a copy of a grown model that needs no Esper."""

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from esper.errors import ConfigError, EsperError, Rejected
from esper.kasmina.discovery import arguments
from esper.kasmina.folding.sites import Call, fold_site
from esper.kasmina.grafted import is_grafted
from esper.kasmina.incubation import NURSERY
from esper.kasmina.morph import drop_role, role_of
from esper.kasmina.observe import tensors_in
from esper.kasmina.placement import KEY, placement_of
from esper.kasmina.quiet import preserved_rng, quiet_eval

TOLERANCE = 1e-5
"""Largest difference to the grown model, relative to its largest output or to 1: a merged map rounds once, not twice."""


def fold(model: nn.Module, example: object = None) -> nn.Module:
    """Return a copy of a grown model in which every module with grafts is a ``torch.fx.GraphModule``.

    A ``Sequential`` of a linear layer, a nonlinearity and a linear layer in which only hidden units of that kind have grown
    stays one, its layers wider.

    The copy names torch and the host's own classes only; it can be trained, saved and loaded where Esper is not installed.
    A seed that is switched off or learns apart is left out; one that is still on trial stays, with the strength that it has
    now. The host's ``layer.weight`` keeps its name where ``layer`` is a single linear or convolution; elsewhere a grafted
    module's own names get ``host.`` in front. What was grown is ``<slot>.grafts.<seed>.<node>``.

    Args:
        model: A wrapped model; it is left as it is.
        example: One input batch, as ``esper.wrap`` takes it. The copy is then held against the model on it, at once. It is
            needed where a grafted module takes any arguments (``*args`` or ``**kwargs``).

    Returns:
        The copy, in the same mode.

    Raises:
        ConfigError: If a grafted module cannot be a graph; it says why.
        Rejected: If the copy computes something else on the example.
    """
    placement_of(model)
    with preserved_rng():
        folded = _copied(model)
        calls = {} if example is None else _calls(folded, example)
        names = Counter(id(parameter) for _, parameter in folded.named_parameters(remove_duplicate=False))

        def is_own(parameter: Tensor) -> bool:
            return names[id(parameter)] <= 1

        sites = [(name, module) for name, module in folded.named_modules() if is_grafted(module)]
        for name, module in sites:
            fold_site(name, module, calls.get(module), is_own)
        _leave(folded)
        for name, module in folded.named_modules():
            _mind_padding(name, module, [site for _, site in sites])
    if example is not None:
        _compare(model, folded, example)
    return folded


def _copied(model: nn.Module) -> nn.Module:
    try:
        folded = copy.deepcopy(model)
    except Exception as error:
        raise ConfigError(
            "the model cannot be copied",
            why=str(error),
            todo="fold works on a copy: let copy.deepcopy(model) work, as for a model without gradients in flight",
            code="ESP-2601",
        ) from error
    for parameter in folded.parameters():
        parameter.grad = None
    for module in folded.modules():
        vars(module).pop(NURSERY, None)
    return folded


def _leave(folded: nn.Module) -> None:
    """Take away what else Esper put on a model."""
    del vars(folded)[KEY]
    for module in folded.modules():
        if role_of(module) is not None:
            drop_role(module)


def _mind_padding(name: str, module: nn.Module, sites: list[nn.Module]) -> None:
    """Keep torch's encoder from handing a graph nested tensors, which its operations do not take."""
    if not isinstance(module, nn.TransformerEncoder) or not getattr(module, "use_nested_tensor", False):
        return
    if any(layer in sites for layer in module.layers):
        module.use_nested_tensor = False
        warnings.warn(
            f"{name or 'the model'} computes positions that a src_key_padding_mask hides like all others from now on; "
            "torch's encoder leaves them zero in eval mode. Do not read them.",
            stacklevel=3,
        )


def _calls(folded: nn.Module, example: object) -> dict[nn.Module, Call]:
    """Run a model once and write down how its grafted modules are called."""
    seen: dict[nn.Module, Call] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before = seen.get(module, Call(0, ()))
        names = dict.fromkeys((*before.kwargs, *kwargs))
        seen[module] = Call(max(before.args, len(args)), tuple(names))

    with _hooked(folded, note):
        _run(folded, example, "the model")
    return seen


@contextmanager
def _hooked(model: nn.Module, note: Any) -> Iterator[None]:
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in model.modules() if is_grafted(m)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(model: nn.Module, example: object, what: str) -> object:
    args, kwargs = arguments(example)
    try:
        with quiet_eval(model):
            return model(*args, **kwargs)
    except EsperError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{what} does not run on the example",
            why=f"{type(error).__name__}: {error}",
            todo="of a grafted module, other code may read parameters of a single layer and constants, nothing else"
            if what == "the folded model" else "give one input batch as the training loop does",
            code="ESP-2602",
        ) from error  # fmt: skip


def _compare(model: nn.Module, folded: nn.Module, example: object) -> None:
    found = difference(_run(model, example, "the model"), _run(folded, example, "the folded model"))
    if not found <= TOLERANCE:
        raise Rejected(
            "the folded model computes something else",
            why=f"its output on the example differs by {found:.2e}; {TOLERANCE:g} is allowed",
            todo="code that reads more of a grafted module than its output may be the cause",
            code="ESP-7410",
        )


def difference(left: object, right: object) -> float:
    """Return the largest difference of two outputs, relative to the largest number in the first or to 1.

    Infinity where they have not the same tensors; equal infinities and NaN in the same places are no difference.
    """
    before, after = list(tensors_in(left)), list(tensors_in(right))
    if [tensor.shape for tensor in before] != [tensor.shape for tensor in after]:
        return float("inf")
    return max((_apart(*pair) for pair in zip(before, after, strict=True)), default=0.0)


def _apart(left: Tensor, right: Tensor) -> float:
    left, right = left.detach().double().cpu(), right.detach().double().cpu()
    same = (left == right) | (left.isnan() & right.isnan())
    gap = torch.where(same, 0.0, (left - right).abs()).nan_to_num(float("inf"), float("inf"))
    size = left[left.isfinite()].abs().amax().item() if left.isfinite().any() else 0.0
    return gap.amax().item() / max(1.0, size) if gap.numel() else 0.0


__all__ = ["TOLERANCE", "difference", "fold"]
