"""A model as Python source: ``model.py`` and ``model.safetensors``, which need torch and safetensors alone."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph

from esper.errors import ConfigError, Rejected
from esper.exporting.inputs import Inputs
from esper.exporting.tracing import IMPORTS, Traced, named_by, traced_layers, traced_operators

RUN_LIMIT_S = 300.0
"""Importing torch takes seconds, a model on a handful of batches as many; beyond this something hangs."""

_HEAD = '''"""{name}, written by Esper {version}. It needs torch and safetensors; the weights are in model.safetensors beside it.

{about}
"""

{imports}

class Model(nn.Module):
    """{name}."""

    def __init__(self):
        super().__init__()
{parts}
        self.tie()

    def tie(self):
        """Let names of one tensor be one tensor."""
{ties}

{forward}

def load(folder=Path(__file__).parent, device="cpu"):
    """Return the model with its weights, in eval mode."""
    state = load_file(Path(folder) / "model.safetensors", device=str(device))
    state.update({{name: state[first] for name, first in TIES.items()}})
    with torch.device("meta"):
        model = Model()
    model.load_state_dict(state, assign=True)
    model.tie()
    return model.eval()


TIES = {aliases}


def put(module, path, part):
    """Make a part the module's own under a path, with plain modules on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = module._modules[parent]
    if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
        module.register_buffer(name, part)
    elif isinstance(part, nn.Parameter):
        module.register_parameter(name, part)
    else:
        module.add_module(name, part)


def get(module, path):
    """Return what is under a path."""
    for name in path.split("."):
        module = getattr(module, name)
    return module
'''
_TRAINABLE = "Its code is the model's own, layer by layer: it can be evaluated and trained."
_MODE = "Its code is that of eval mode, as the model computes something else when it trains."
_OPERATORS = "Its code is that of eval mode, operator by operator, as torch.export saw it."
_BUILT_IN = re.compile(r"torch\._C\._nn\.(\w+)")
_RELEASE = re.compile(r";\s+(?:\w+ = )+None(?=\s|$)")


def write_source(
    model: nn.Module, folder: Path, inputs: Inputs, program: Callable[[], ExportedProgram]
) -> Sequence[str]:
    """Write a model as source.

    Its layers are followed by ``torch.fx`` where that is possible, which gives code that people can read; otherwise its
    operators by ``torch.export``.

    Args:
        model: A folded model in eval mode.
        folder: Where.
        inputs: The example.
        program: Exports the model.

    Returns:
        Notes for the reader.

    Raises:
        ConfigError: If its code can be followed in neither way, or takes more than tensors and plain values.
    """
    _spec(inputs, {}, "")
    found = traced_layers(model, inputs)
    about = _OPERATORS
    if found is None:
        found = traced_operators(program())
    else:
        about = _TRAINABLE if found.any_mode else _MODE
    state, ties = _once(found.tensors())
    text = _text(found, type(model).__name__, about, ties)
    (folder / "model.py").write_text(text, encoding="utf-8")
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return (about, "import model; model.load()")


def _text(found: Traced, name: str, about: str, ties: dict[str, str]) -> str:
    from esper import __version__

    code = found.graph.python_code("self")
    forward = _BUILT_IN.sub(_public, _RELEASE.sub("", code.src.strip()))
    body = "\n".join(f"    {line}".rstrip() for line in forward.splitlines())
    parts = [f'        put(self, "{path}", {text})' for path, text in found.parts.items()]
    tied = [f'        put(self, "{name}", get(self, "{first}"))' for name, first in ties.items()]
    return _HEAD.format(
        name=name,
        version=__version__,
        about=about,
        imports=_imports(found.graph),
        parts="\n".join(parts),
        ties="\n".join(tied) or "        return",
        forward=f"{body}\n",
        aliases=json.dumps(ties),
    )


def _public(found: re.Match[str]) -> str:
    """Return the public name of one of torch's own functions, where it has one."""
    name = found[1]
    same = getattr(nn.functional, name, None) is getattr(torch._C._nn, name)
    return f"torch.nn.functional.{name}" if same else found[0]


def _imports(graph: Graph) -> str:
    own = [IMPORTS[name] for name in sorted(named_by(graph) - {"torch"})]
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        "from safetensors.torch import load_file",
        "from torch import nn",
    ]
    return "\n".join([*lines, *own, ""])


def _once(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each tensor under its first name, and the first name of every other."""
    first: dict[int, str] = {}
    ties: dict[str, str] = {}
    for name, tensor in tensors.items():
        known = first.setdefault(id(tensor), name)
        if known != name:
            ties[name] = known
    # Views of one storage are different tensors; each is stored on its own.
    return {name: tensors[name].clone() for name in first.values()}, ties


# -- running it ----------------------------------------------------------------------------------------------------------

_RUNNER = """
import json, sys
sys.path.insert(0, {folder!r})
import torch
torch.set_num_threads({threads})
from safetensors.torch import load_file, save_file
import model
tensors = load_file({given!r})
net, outputs = model.load(), {{}}
def value(spec):
    return tensors[spec["tensor"]] if isinstance(spec, dict) else spec
def flat(out):
    if isinstance(out, torch.Tensor):
        return [out]
    return [t for each in (out.values() if isinstance(out, dict) else out) for t in flat(each)]
with torch.no_grad():
    for index, (args, kwargs) in enumerate(json.loads({calls!r})):
        out = flat(net(*map(value, args), **{{k: value(v) for k, v in kwargs.items()}}))
        outputs.update({{f"{{index}}.{{place}}": t.contiguous().clone() for place, t in enumerate(out)}})
save_file(outputs, {taken!r})
assert not [name for name in sys.modules if name.partition(".")[0] == "esper"], "it imports esper"
"""


def run_source(folder: Path, cases: Sequence[Inputs]) -> Sequence[object]:
    """Run ``model.py`` in an interpreter of its own, which never imports Esper.

    Raises:
        Rejected: If it does not run.
    """
    tensors: dict[str, Tensor] = {}
    calls = [_spec(each, tensors, f"{index}.") for index, each in enumerate(cases)]
    with TemporaryDirectory() as place:
        given, taken = str(Path(place) / "given.safetensors"), str(Path(place) / "taken.safetensors")
        save_file(tensors, given)
        code = _RUNNER.format(
            folder=str(folder), threads=torch.get_num_threads(), given=given, taken=taken, calls=json.dumps(calls)
        )
        done = subprocess.run(
            [sys.executable, "-I", "-B", "-c", code], capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False
        )
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise Rejected("model.py does not run", why=last[:600], todo="export again", code="ESP-7423")
        outputs = load_file(taken)
    return [
        [outputs[name] for name in sorted(outputs, key=_place) if _place(name)[0] == index]
        for index in range(len(cases))
    ]


def _place(name: str) -> tuple[int, int]:
    index, _, place = name.partition(".")
    return int(index), int(place)


def _spec(inputs: Inputs, tensors: dict[str, Tensor], prefix: str) -> tuple[list[Any], dict[str, Any]]:
    """Return a call as data; its tensors go where they are stored.

    Raises:
        ConfigError: If an argument is neither a tensor nor a plain value.
    """

    def spec(name: str, value: object) -> object:
        if isinstance(value, Tensor):
            tensors[prefix + name] = value.detach().contiguous().clone()
            return {"tensor": prefix + name}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise ConfigError(
            "the model cannot be written as source",
            why=f"it takes a {type(value).__name__}; arguments must be tensors or plain values",
            todo="use pt2",
            code="ESP-2625",
        )

    args = [spec(f"a{index}", value) for index, value in enumerate(inputs.args)]
    return args, {name: spec(f"k.{name}", value) for name, value in inputs.kwargs.items()}
