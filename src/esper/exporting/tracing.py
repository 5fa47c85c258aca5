"""Following a model's code: layer by layer where ``torch.fx`` can, operator by operator where it cannot."""

import builtins
import inspect
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, Node, Tracer
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from esper.errors import ConfigError
from esper.exporting.inputs import Inputs

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

IMPORTS = {
    "torch": "import torch",
    "inf": "from math import inf",
    "nan": "from math import nan",
    "device": "from torch import device",
    "NoneType": "NoneType = type(None)",
    "math": "import math",
    "_operator": "import _operator",
}
"""Global names that code may use where there is torch alone, and how they come in."""


@dataclass(frozen=True)
class Traced:
    """A model's code as a graph.

    Attributes:
        graph: The graph.
        parts: What makes each part that the graph names, as source, by path.
        modules: The layers among them.
        values: The tensors among them.
        any_mode: Whether the code is the same in train and in eval mode.
    """

    graph: Graph
    parts: Mapping[str, str]
    modules: Mapping[str, nn.Module]
    values: Mapping[str, Tensor]
    any_mode: bool

    def tensors(self) -> dict[str, Tensor]:
        """Return every parameter and buffer under its path."""
        found = dict(self.values)
        for path, module in self.modules.items():
            for name, tensor in module.state_dict(keep_vars=True).items():
                found[f"{path}.{name}"] = tensor
        return found


def traced_layers(model: nn.Module, inputs: Inputs) -> Traced | None:
    """Follow a model layer by layer, or return None where its code depends on more than its layers."""
    if not _takes_just(model, inputs):
        return None
    try:
        graphs = [_trace(model, training) for training in (True, False)]
        train, graph = (_cleaned(each) for each in graphs)
        codes = [each.python_code("self").src for each in (train, graph)]
    except (
        Exception
    ):  # whatever a host's code raises when it meets a stand-in for a tensor; torch.export follows it then
        return None
    finally:
        model.eval()
    if not named_by(graph) <= IMPORTS.keys():
        return None
    return _collected(model, graph, any_mode=codes[0] == codes[1])


def traced_operators(program: ExportedProgram) -> Traced:
    """Take the graph of an exported program.

    Raises:
        ConfigError: If it takes or returns more than tensors in plain containers.
    """
    module = program.module()
    graph = _flat(module, program)
    if not named_by(graph) <= IMPORTS.keys():
        raise _unwritable("its operators are not torch's own")
    return _collected(module, graph, any_mode=False)


def named_by(graph: Graph) -> set[str]:
    """Return the global names that a graph's code uses, apart from Python's own."""
    code = graph.python_code("self")
    foreign = [name for name, value in code.globals.items() if getattr(builtins, name, None) is not value]
    return {name for name in foreign if re.search(rf"\b{name}\b", code.src)}


# -- layers --------------------------------------------------------------------------------------------------------------


class _Layers(Tracer):
    """Stops at layers of torch that their own text makes again."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Tell whether a module is written as one part."""
        return constructor(m) is not None


def _trace(model: nn.Module, training: bool) -> Graph:
    model.train(training)
    return _Layers().trace(model)


def _takes_just(model: nn.Module, inputs: Inputs) -> bool:
    """Tell whether the example gives every argument of a model, and gives tensors only."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return False
    given = [*inputs.args, *inputs.kwargs.values()]
    return len(given) == len(parameters) and all(isinstance(value, Tensor) for value in given)


def _cleaned(graph: Graph) -> Graph:
    graph.eliminate_dead_code(lambda node: not _is_pure(node))
    graph.lint()
    return graph


def _is_pure(node: Node) -> bool:
    return node.op == "get_attr" or node.target in (getattr, operator.getitem)


def constructor(module: nn.Module) -> str | None:
    """Return the source that makes a layer of torch like this one, or None where its text does not."""
    name, text = type(module).__name__, repr(module)
    if getattr(nn, name, None) is not type(module) or "\n" in text or any(vars(module)[kind] for kind in _HOOKS):
        return None
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
        return None
    try:
        with torch.device("meta"):
            again = eval(f"nn.{text}", {"nn": nn})  # the text of one of torch's own layers
    except Exception:  # the text of some layers is no source
        return None
    return f"nn.{text}" if isinstance(again, nn.Module) and _look(again) == _look(module) else None


def _look(module: nn.Module) -> object:
    """Return what must be equal of two layers: their text, plain attributes, and the shapes of their tensors."""
    plain = {name: value for name, value in vars(module).items() if _is_plain(value) and name != "training"}
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return repr(module), plain, shapes


def _is_plain(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(each) for each in value)
    return value is None or type(value) in (bool, int, float, str)


# -- operators -----------------------------------------------------------------------------------------------------------


def _flat(module: torch.fx.GraphModule, program: ExportedProgram) -> Graph:
    """Return a program's graph as a plain function of its tensors."""
    graph = module.graph
    takes, gives = program.call_spec.in_spec, program.call_spec.out_spec
    args, kwargs = pytree.tree_unflatten([0] * takes.num_leaves, takes)
    if any(not isinstance(leaf, int) for leaf in (*args, *kwargs.values())):
        raise _unwritable("it takes containers of tensors")
    for node in list(graph.nodes):
        if node.op == "call_module":  # torch's own check of the inputs' shapes
            graph.erase_node(node)
    end = next(node for node in graph.nodes if node.op == "output")
    result = pytree.tree_unflatten(list(end.args[0]), gives)
    if not _is_printable(result):
        raise _unwritable(f"it returns a {type(result).__name__}")
    end.args = (result,)
    graph.set_codegen(CodeGen())
    graph.eliminate_dead_code()
    return graph


def _is_printable(result: object) -> bool:
    if type(result) in (tuple, list):
        return all(_is_printable(each) for each in result)  # type: ignore[attr-defined]
    if type(result) is dict:
        return all(_is_printable(each) for each in result.values())
    return isinstance(result, Node) or _is_plain(result)


def _unwritable(why: str) -> ConfigError:
    return ConfigError("the model cannot be written as source", why=why, todo="use pt2", code="ESP-2625")


# -- parts ---------------------------------------------------------------------------------------------------------------


def _collected(model: nn.Module, graph: Graph, *, any_mode: bool) -> Traced:
    modules: dict[str, nn.Module] = {}
    values: dict[str, Tensor] = {}
    parts: dict[str, str] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr") or node.target in parts:
            continue
        path = str(node.target)
        part = _at(model, path)
        if isinstance(part, nn.Module):
            modules[path], parts[path] = part, constructor(part) or ""
        else:
            values[path], parts[path] = part, _tensor_text(part)
    return Traced(graph, parts, modules, values, any_mode)


def _tensor_text(tensor: Tensor) -> str:
    text = f"torch.empty({tuple(tensor.shape)}, dtype={tensor.dtype})"
    if not isinstance(tensor, nn.Parameter):
        return text
    return f"nn.Parameter({text})" if tensor.requires_grad else f"nn.Parameter({text}, requires_grad=False)"


def _at(model: nn.Module, path: str) -> Any:
    found: Any = model
    for name in path.split("."):
        found = getattr(found, name)
    return found
