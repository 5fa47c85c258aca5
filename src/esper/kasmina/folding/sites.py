"""A module with grafts becomes a graph: what its host computes, and what the grafts add to it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from esper.errors import ConfigError
from esper.ir import INPUT, Reads
from esper.kasmina.folding.bodies import Sketch, draw
from esper.kasmina.folding.steps import steps_of
from esper.kasmina.folding.widening import widened
from esper.kasmina.grafted import Graft, grafts_of
from esper.kasmina.morph import base_of
from esper.kasmina.placement import CHILD

GRAFTS = "grafts"
"""Where a site keeps what was grown: ``grafts.<seed>.<node>.<tensor>``."""
HOST = "host"
"""Where a site keeps its host, unless that is a single layer, which becomes part of the site."""
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
_NO_DEFAULT = object()


@dataclass(frozen=True)
class Call:
    """How a module was called.

    Attributes:
        args: Number of positional arguments.
        kwargs: Names of the others.
    """

    args: int
    kwargs: tuple[str, ...]


def fold_site(name: str, module: nn.Module, call: Call | None, is_own: Callable[[Tensor], bool]) -> None:
    """Turn a grafted module into a ``GraphModule``, in place, so that whoever holds it holds the graph.

    Where all that has grown is hidden units of its own kind, it stays the module that it is, with wider layers.

    Args:
        name: Its name, for messages.
        module: A grafted module of a model that nobody else uses.
        call: How it was called, if that was seen.
        is_own: Whether nothing else uses a parameter.

    Raises:
        ConfigError: If it cannot be a graph.
    """
    _check(name, module)
    grafts: list[tuple[str, Graft]] = [(index, graft) for index, graft in grafts_of(module).items()]  # type: ignore[misc]
    host = _host(module)
    grafts = widened(host, grafts, is_own)
    if not grafts:
        del module._modules[CHILD]
        return
    sketch = Sketch(Graph())
    value = _layer(sketch, host) if _is_plain_layer(host) else _called(sketch, name, host, call)
    entered = next(iter(sketch.graph.find_nodes(op="placeholder")), None)
    for index, graft in grafts:
        value = _grown(sketch, index, graft, value, entered)
    sketch.graph.output(value)
    site = GraphModule(sketch.parts, sketch.graph, class_name=type(host).__name__)
    for part in (module for target, module in sketch.parts.items() if target != HOST and isinstance(module, nn.Module)):
        part.train(host.training)
    site.training = host.training
    _keep(site, _readable(host))
    _become(name, module, site)


def _grown(sketch: Sketch, index: str, graft: Graft, h: Node, entered: Node | None) -> Node:
    """Draw h + alpha * F(x)."""
    alpha = float(graft.alpha)
    if not graft.active or alpha == 0.0:
        return h
    sketch.prefix = f"{GRAFTS}.{index}."
    x = h if graft.kernel.ir.reads is Reads.OUTPUT else entered
    assert x is not None, "a host whose input is read has one"
    values = {INPUT: x}
    steps = steps_of(graft.kernel, alpha)
    for step in steps:
        values[step.name] = draw(sketch, step, tuple(values[source] for source in step.inputs))
    return sketch.call(torch.add, h, sketch.method("type_as", values[steps[-1].name], h))


# -- the host ------------------------------------------------------------------------------------------------------------


def _host(module: nn.Module) -> nn.Module:
    """Return the host on its own: the user's class, with the parameters, children and attributes of the grafted module."""
    cls = base_of(module)
    host = cls.__new__(cls)
    vars(host).update({**vars(module), "_modules": {n: m for n, m in module._modules.items() if n != CHILD}})
    return host


def _is_plain_layer(host: nn.Module) -> bool:
    """Tell whether a host is one of torch's single layers as torch made it."""
    touched = host._forward_pre_hooks or host._buffers or host._modules or host._state_dict_hooks
    return type(host) in _LAYERS and set(host._parameters) == {"weight", "bias"} and not touched


def _layer(sketch: Sketch, host: nn.Module) -> Node:
    """Draw a single layer, whose parameters stay where they were."""
    x = sketch.graph.placeholder("input")
    own = {name: tensor for name, tensor in host._parameters.items() if tensor is not None}
    sketch.parts.update(own)
    weight, bias = (sketch.graph.get_attr(name) if name in own else None for name in ("weight", "bias"))
    if isinstance(host, nn.Linear):
        return sketch.call(F.linear, x, weight, bias)
    assert isinstance(host, (nn.Conv1d, nn.Conv2d))
    padding: Any = host.padding
    if host.padding_mode != "zeros":
        margins = tuple(host._reversed_padding_repeated_twice)
        x, padding = sketch.call(F.pad, x, margins, host.padding_mode), 0
    convolve = F.conv1d if isinstance(host, nn.Conv1d) else F.conv2d
    return sketch.call(convolve, x, weight, bias, host.stride, padding, host.dilation, host.groups)


def _called(sketch: Sketch, name: str, host: nn.Module, call: Call | None) -> Node:
    """Draw a call of the host with the arguments that its forward takes."""
    sketch.parts[HOST] = host
    args: list[Node] = []
    kwargs: dict[str, Any] = {}
    for parameter in _parameters(name, host, call):
        default = () if parameter.default is Parameter.empty else (parameter.default,)
        node = sketch.graph.create_node("placeholder", parameter.name, default)
        if parameter.kind is Parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = node
        else:
            args.append(node)
    return sketch.graph.call_module(HOST, tuple(args), kwargs)


def _parameters(name: str, host: nn.Module, call: Call | None) -> list[Parameter]:
    """Return the arguments of a host one by one; what ``*args`` and ``**kwargs`` stand for is taken from a call."""
    found: list[Parameter] = []
    for parameter in inspect.signature(host.forward).parameters.values():
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            found += _seen(name, parameter, found, call)
        elif parameter.default is Parameter.empty or _is_plain(parameter.default):
            found.append(parameter)
        else:
            raise ConfigError(
                f"{name} cannot become a graph",
                why=f"its argument {parameter.name} has the default {parameter.default!r}, which a graph cannot write down",
                todo="give it a number, a text, None or a tuple of them as its default",
                code="ESP-2611",
            )
    return found


def _seen(name: str, parameter: Parameter, known: list[Parameter], call: Call | None) -> list[Parameter]:
    if call is None:
        raise ConfigError(
            f"{name} cannot become a graph yet",
            why=f"its forward takes any arguments ({str(parameter)!r}), and a graph needs their names",
            todo="give esper.fold an example=, as the model is used",
            code="ESP-2612",
        )
    if parameter.kind is Parameter.VAR_POSITIONAL:
        extra = range(call.args - len(known))
        return [Parameter(f"{parameter.name}_{index}", Parameter.POSITIONAL_ONLY) for index in extra]
    taken = {each.name for each in known}
    names = [key for key in call.kwargs if key not in taken]
    return [Parameter(key, Parameter.KEYWORD_ONLY, default=None) for key in names]


# -- the site ------------------------------------------------------------------------------------------------------------


def _check(name: str, module: nn.Module) -> None:
    hooked = [kind.strip("_") for kind in _HOOKS if getattr(module, kind)]
    if hooked:
        raise ConfigError(
            f"{name} cannot become a graph",
            why=f"it has {', '.join(hooked)}, which a graph loses when it is saved",
            todo="remove the hooks, fold, and register them on the folded model",
            code="ESP-2613",
        )


def _readable(host: nn.Module) -> dict[str, object]:
    """Return what others may read of a host that a graph does not hold: the constants of its class."""
    names = getattr(type(host), "__constants__", ())
    kept = {name: vars(host)[name] for name in names if name in vars(host) and _is_plain(vars(host)[name])}
    if _is_plain_layer(host) and host._parameters["bias"] is None:
        kept["bias"] = None
    if isinstance(host, nn.TransformerEncoderLayer):
        # nn.TransformerEncoder asks its first layer for this.
        kept["self_attn"] = SimpleNamespace(batch_first=host.self_attn.batch_first)
    return kept


def _keep(site: GraphModule, attributes: Mapping[str, object]) -> None:
    """Give a site attributes that last through copies and pickles."""
    free = {name: value for name, value in attributes.items() if not hasattr(site, name)}
    site.meta["_user_preserved_attributes"] = free
    for name, value in free.items():
        setattr(site, name, value)


def _become(name: str, module: nn.Module, site: GraphModule) -> None:
    """Let a module be the site: one object stands for both wherever it is referred to."""
    try:
        module.__class__ = type(site)
    except TypeError as error:
        raise ConfigError(f"{name} cannot become a graph", why=str(error), code="ESP-2614") from error
    vars(module).clear()
    vars(module).update(vars(site))
    module.graph.owning_module = module  # type: ignore[union-attr]


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(each) for each in value)
    return value is None or type(value) in (bool, int, float, str)
