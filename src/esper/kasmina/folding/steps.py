"""A kernel as a list of steps, with its linear parts merged where algebra allows."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from esper.blueprints import KernelModule
from esper.ir import ops
from esper.ir.birth import Use
from esper.ir.opset import padding_of
from esper.ir.types import Attrs

_ALPHA = "*alpha"  # no id of a node
_AFFINE = ("linear", "conv")


@dataclass(frozen=True)
class Step:
    """One operation on earlier values.

    Attributes:
        name: Id of the value that it makes.
        label: What its tensors are called by.
        op: Name of the operation.
        use: The operation in its place.
        inputs: Ids of earlier values.
        tensors: Its parameters and buffers by short name.
    """

    name: str
    label: str
    op: str
    use: Use
    inputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @property
    def numel(self) -> int:
        """Numbers that it holds."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def steps_of(kernel: KernelModule, alpha: float) -> tuple[Step, ...]:
    """Return what a graft adds to its host, step by step; the last one makes the result.

    Args:
        kernel: The kernel.
        alpha: Strength of the path, which becomes part of the last linear map where there is one.
    """
    ir = kernel.ir
    owned = {**dict(kernel.named_parameters()), **dict(kernel.named_buffers())}
    steps = []
    for node, use in zip(ir.nodes, ir.uses, strict=True):
        tensors = {spec.name: owned[f"{node.id}.{spec.name}"] for spec in ops.get(node.op).tensors(use)}
        steps.append(Step(node.id, node.id, node.op, use, node.inputs, tensors))
    if alpha != 1.0:
        use = Use(ir.layout, (ir.out_channels,), Attrs({"value": alpha}))
        steps.append(Step(_ALPHA, _ALPHA, "scale", use, (ir.output,), {}))
    return merged(tuple(steps))


def merged(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Merge neighbours that are one linear map, as long as that takes no more parameters."""
    made = {step.name: step for step in steps}
    used = Counter(source for step in steps for source in step.inputs)
    for step in steps:
        before = made.get(step.inputs[0]) if len(step.inputs) == 1 else None
        if before is None or used[before.name] != 1:
            continue
        one = _one(before, step)
        if one is not None and one.numel <= before.numel + step.numel:
            # What was between leaves; the place of the later one stays.
            return merged(tuple(one if each is step else each for each in steps if each is not before))
    return steps


def _one(first: Step, second: Step) -> Step | None:
    """Return the one step that two in a row are, or None where they are not one."""
    rules: dict[tuple[str, str], Callable[[Step, Step], Step | None]] = {
        ("linear", "linear"): _linear_linear,
        ("conv", "conv"): _conv_conv,
        ("scale", "scale"): _scale_scale,
    }
    for op in _AFFINE:
        rules["scale", op] = lambda a, b: _rescaled(b, a, bias=False)
        rules[op, "scale"] = lambda a, b: _rescaled(a, b, bias=True)
    rule = rules.get((first.op, second.op))
    found = None if rule is None else rule(first, second)
    return None if found is None else replace(found, name=second.name, inputs=first.inputs)


def _scale_scale(first: Step, second: Step) -> Step:
    value = first.use.attrs.number("value") * second.use.attrs.number("value")
    return replace(second, use=replace(second.use, attrs=Attrs({"value": value})))


def _rescaled(affine: Step, scale: Step, *, bias: bool) -> Step:
    value = scale.use.attrs.number("value")
    scaled = {
        name: t.double() * value if name == "weight" or bias else t.double() for name, t in affine.tensors.items()
    }
    return replace(affine, tensors=_like(affine.tensors, scaled))


def _linear_linear(first: Step, second: Step) -> Step:
    weight = second.tensors["weight"].double()
    product = weight @ first.tensors["weight"].double()
    return _joined(first, second, second.use, product, weight)


def _conv_conv(first: Step, second: Step) -> Step | None:
    if first.use.attrs.integer("groups") != 1 or second.use.attrs.integer("groups") != 1:
        return None
    before, after = first.tensors["weight"].double(), second.tensors["weight"].double()
    if second.use.attrs.integer("kernel") == 1:
        flat = after.flatten(1)
        product = torch.einsum("oi,i...->o...", flat, before)
        attrs = Attrs({**first.use.attrs, "out": after.shape[0]})
        return _joined(first, second, replace(first.use, attrs=attrs), product, flat)
    # Zeros at the border are not what a bias makes of them; a padding that copies values is.
    borders = padding_of(second.use) and second.use.attrs.choice("padding_mode") == "zeros"
    if first.use.attrs.integer("kernel") != 1 or ("bias" in first.tensors and borders):
        return None
    product = torch.einsum("oi...,ic->oc...", after, before.flatten(1))
    return _joined(first, second, replace(second.use, inputs=first.use.inputs), product, after.flatten(2).sum(2))


def _joined(first: Step, second: Step, use: Use, weight: Tensor, onto: Tensor) -> Step:
    """Return the step with a weight, and with both biases, the first one carried ``onto`` the output."""
    bias = [onto @ first.tensors["bias"].double()] if "bias" in first.tensors else []
    bias += [second.tensors["bias"].double()] if "bias" in second.tensors else []
    tensors = {"weight": weight, **({"bias": torch.stack(bias).sum(0)} if bias else {})}
    attrs = Attrs({**use.attrs, "bias": bool(bias)})
    return replace(second, use=replace(use, attrs=attrs), tensors=_like({**first.tensors, **second.tensors}, tensors))


def _like(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as parameters of the type that the old ones have, trainable where one of those was."""
    dtype, trainable = old["weight"].dtype, any(tensor.requires_grad for tensor in old.values())
    last = any(t.ndim == 4 and prod(t.shape[2:]) > 1 and not t.is_contiguous() for t in old.values())
    made = {name: tensor.detach().to(dtype) for name, tensor in new.items()}
    if last:
        made = {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in made.items()}
    return {name: nn.Parameter(tensor, requires_grad=trainable) for name, tensor in made.items()}
