"""Which torch modules and functions each operation of a blueprint becomes in a graph."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from esper.errors import ConfigError
from esper.ir.opset import BATCH_NORM_MOMENTUM, NORM_EPS, padding_of
from esper.kasmina.folding.steps import Step

Part: TypeAlias = nn.Module | Tensor | None


@dataclass
class Sketch:
    """A graph while it is drawn, with what its nodes name.

    Attributes:
        graph: The graph.
        parts: Modules, parameters and buffers by target.
        prefix: What the targets of the present kernel begin with.
    """

    graph: Graph
    parts: dict[str, Part] = field(default_factory=dict)
    prefix: str = ""

    def module(self, step: Step, module: nn.Module, value: Node) -> Node:
        """Call a module that holds the step's tensors."""
        for name, tensor in step.tensors.items():
            held: dict[str, Any] = module._parameters if name in module._parameters else module._buffers
            held[name] = tensor
        self.parts[self.prefix + step.label] = module
        return self.graph.call_module(self.prefix + step.label, (value,))

    def tensor(self, step: Step, name: str) -> Node:
        """Read one of the step's tensors."""
        target = f"{self.prefix}{step.label}.{name}"
        self.parts[target] = step.tensors[name]
        return self.graph.get_attr(target)

    def call(self, function: Callable[..., Tensor], *args: object, **kwargs: object) -> Node:
        """Call a function."""
        return self.graph.call_function(function, args, kwargs)  # type: ignore[arg-type]

    def method(self, name: str, *args: object) -> Node:
        """Call a method of a tensor."""
        return self.graph.call_method(name, args)  # type: ignore[arg-type]


Rule: TypeAlias = Callable[[Sketch, Step, tuple[Node, ...]], Node]
"""Draws one step and returns its value."""


def draw(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    """Draw one step.

    Raises:
        ConfigError: If the operation is an extension.
    """
    rule = RULES.get(step.op)
    if rule is None:
        raise ConfigError(
            f"operation {step.op!r} cannot be folded",
            why="it is an extension, whose body torch does not have",
            todo="roll its graft back first, or keep Esper and the extension installed where the model is used",
            code="ESP-2610",
        )
    return rule(sketch, step, values)


def _linear(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    out, width = step.tensors["weight"].shape
    return sketch.module(step, nn.Linear(width, out, bias="bias" in step.tensors, device="meta"), values[0])


def _conv(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    attrs, weight = step.use.attrs, step.tensors["weight"]
    kind = nn.Conv1d if step.use.layout.rank == 1 else nn.Conv2d
    groups, padding = attrs.integer("groups"), padding_of(step.use)
    mode: Any = attrs.choice("padding_mode") if padding else "zeros"
    module = kind(
        weight.shape[1] * groups,
        weight.shape[0],
        attrs.integer("kernel"),
        padding=padding,
        dilation=attrs.integer("dilation"),
        groups=groups,
        bias="bias" in step.tensors,
        padding_mode=mode,
        device="meta",
    )
    return sketch.module(step, module, values[0])


def _batch_norm(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    kind = nn.BatchNorm1d if step.use.layout.rank == 1 else nn.BatchNorm2d
    module = kind(step.use.inputs[0], eps=NORM_EPS, momentum=BATCH_NORM_MOMENTUM, device="meta")
    module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=step.tensors["weight"].device)
    return sketch.module(step, module, values[0])


def _group_norm(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    groups = step.use.attrs.integer("groups")
    if step.use.layout.rank == 1:
        return sketch.module(step, nn.GroupNorm(groups, step.use.inputs[0], eps=NORM_EPS, device="meta"), values[0])
    # With weight and bias inside, torch 2.13 on the CPU writes through a null pointer in the backward pass of a channels-last
    # map that needs no gradient itself, as that of a frozen host.
    normal = sketch.call(F.group_norm, values[0], groups, eps=NORM_EPS)
    weight, bias = (sketch.method("reshape", sketch.tensor(step, name), 1, -1, 1, 1) for name in ("weight", "bias"))
    return sketch.call(torch.add, sketch.call(torch.mul, normal, weight), bias)


def _over_channels(kind: type[nn.LayerNorm] | type[nn.RMSNorm]) -> Rule:
    def rule(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
        module = kind(step.use.inputs[0], eps=NORM_EPS, device="meta")
        if not step.use.layout.is_channels_first:
            return sketch.module(step, module, values[0])
        last = sketch.method("movedim", values[0], 1, -1)
        return sketch.method("movedim", sketch.module(step, module, last), -1, 1)

    return rule


def _attention(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    heads = step.use.attrs.integer("heads")
    sequences = list(values)
    if step.use.layout.is_channels_first:
        sequences = [sketch.method("transpose", sketch.method("flatten", value, 2), 1, 2) for value in values]
    query, key, value = (
        sketch.method("transpose", sketch.method("unflatten", part, -1, (heads, width // heads)), 1, 2)
        for part, width in zip(sequences, step.use.inputs, strict=True)
    )
    attended = sketch.call(F.scaled_dot_product_attention, query, key, value, is_causal=step.use.attrs.flag("causal"))
    flat = sketch.method("flatten", sketch.method("transpose", attended, 1, 2), 2)
    if not step.use.layout.is_channels_first:
        return flat
    return sketch.method("reshape_as", sketch.method("transpose", flat, 1, 2), values[2])


def _scale(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    return sketch.call(torch.mul, values[0], step.use.attrs.number("value"))


def _position_mean(sketch: Sketch, step: Step, values: tuple[Node, ...]) -> Node:
    return sketch.call(torch.mean, values[0], dim=tuple(range(2, 2 + step.use.layout.rank)), keepdim=True)


def _function(function: Callable[..., Tensor]) -> Rule:
    return lambda sketch, step, values: sketch.call(function, *values)


RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv": _conv,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _over_channels(nn.LayerNorm),
    "rms_norm": _over_channels(nn.RMSNorm),
    "relu": _function(F.relu),
    "gelu": _function(F.gelu),
    "silu": _function(F.silu),
    "sigmoid": _function(torch.sigmoid),
    "tanh": _function(torch.tanh),
    "add": _function(torch.add),
    "mul": _function(torch.mul),
    "position_mean": _position_mean,
    "scale": _scale,
    "attention": _attention,
}
"""One for each operation of the closed set."""
