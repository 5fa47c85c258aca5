"""The formats: how each is written, and how it is run again."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.export import ExportedProgram

from esper.errors import ConfigError, Rejected
from esper.exporting.inputs import Inputs
from esper.exporting.inputs import run as run_model
from esper.exporting.source import run_source, write_source

OPSET = 20
"""The first ONNX operator set that has GELU; onnxruntime 1.20 and later run it."""
WEIGHTS = "model.safetensors"

Write: TypeAlias = Callable[[nn.Module, Path, Inputs | None, bool], Sequence[str]]
"""Writes a folded model in eval mode to a folder, for any batch or not, and returns notes for the reader."""
Run: TypeAlias = Callable[[nn.Module, Path, Sequence[Inputs]], Sequence[object]]
"""Runs the files of a folder on inputs; the folded model gives what the files leave out."""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: Its name.
        files: What is written.
        write: Writes them.
        run: Runs them.
        needs_example: Whether writing needs an example.
    """

    name: str
    files: tuple[str, ...]
    write: Write
    run: Run
    needs_example: bool = True


def program(model: nn.Module, inputs: Inputs | None, any_batch: bool) -> ExportedProgram:
    """Return a model as ``torch.export`` sees it.

    Raises:
        ConfigError: If its code cannot be followed.
    """
    assert inputs is not None
    example = inputs.resized(max(inputs.batch, 3)) if any_batch else inputs  # torch takes sizes of 0 and 1 for granted
    try:
        with _torch_speaks_of_itself():
            return torch.export.export(
                model,
                example.args,
                example.kwargs,
                dynamic_shapes=example.any_batch(model) if any_batch else None,
            )
    except Exception as error:
        said = " ".join(str(error).partition("The error above occurred")[0].split())
        raise ConfigError(
            "the model cannot be exported",
            why=f"torch.export says: {said[:800]}",
            todo="change the code that it names; where only the size of the batch is at fault, export a fixed one "
            "(fixed_batch=True, --fixed-batch)",
            code="ESP-2624",
        ) from error


# -- safetensors ---------------------------------------------------------------------------------------------------------


def _write_weights(model: nn.Module, folder: Path, inputs: Inputs | None, any_batch: bool) -> Sequence[str]:
    save_model(model, str(folder / WEIGHTS))
    return ("read it into esper.fold's model with safetensors.torch.load_model",)


def _run_weights(model: nn.Module, folder: Path, cases: Sequence[Inputs]) -> Sequence[object]:
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*fresh.parameters(), *fresh.buffers()):
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    try:
        load_model(fresh, folder / WEIGHTS)
    except (SafetensorError, RuntimeError) as error:
        raise Rejected(
            f"{WEIGHTS} cannot be read", why=str(error)[:600], todo="export again", code="ESP-7422"
        ) from error
    return [run_model(fresh, each, "example") for each in cases]


# -- pt2 -----------------------------------------------------------------------------------------------------------------


def _write_pt2(model: nn.Module, folder: Path, inputs: Inputs | None, any_batch: bool) -> Sequence[str]:
    found = program(model, inputs, any_batch)
    with _torch_speaks_of_itself():
        torch.export.save(found, folder / "model.pt2")
    return ("for evaluation: torch.export.load(path).module()",)


def _run_pt2(model: nn.Module, folder: Path, cases: Sequence[Inputs]) -> Sequence[object]:
    with _torch_speaks_of_itself(), torch.no_grad():
        loaded = torch.export.load(folder / "model.pt2").module()
        return [loaded(*each.args, **each.kwargs) for each in cases]


# -- onnx ----------------------------------------------------------------------------------------------------------------


def _write_onnx(model: nn.Module, folder: Path, inputs: Inputs | None, any_batch: bool) -> Sequence[str]:
    _need("onnx", "onnxscript")
    found = program(model, inputs, any_batch)
    with _torch_speaks_of_itself():
        made = torch.onnx.export(found, dynamo=True, opset_version=OPSET, verbose=False)
        assert made is not None
        made.save(folder / "model.onnx")
    return (f"opset {OPSET}", "for evaluation")


def _run_onnx(model: nn.Module, folder: Path, cases: Sequence[Inputs]) -> Sequence[object]:
    _need("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs: list[object] = []
    for each in cases:
        arrays = [tensor.detach().cpu().numpy() for tensor in each.tensors()]
        outputs.append([torch.from_numpy(y) for y in session.run(None, dict(zip(names, arrays, strict=True)))])
    return outputs


def _need(*modules: str) -> None:
    """Import what the extra brings.

    Raises:
        ConfigError: If it is not installed.
    """
    for name in modules:
        try:
            __import__(name)
        except ImportError as error:
            raise ConfigError(
                f"the format onnx needs {name}",
                why=str(error),
                todo='pip install "esper-morphogenesis[onnx]"',
                code="ESP-2622",
            ) from error


# -- py ------------------------------------------------------------------------------------------------------------------


def _write_py(model: nn.Module, folder: Path, inputs: Inputs | None, any_batch: bool) -> Sequence[str]:
    assert inputs is not None
    return write_source(model, folder, inputs, lambda: program(model, inputs, any_batch))


def _run_py(model: nn.Module, folder: Path, cases: Sequence[Inputs]) -> Sequence[object]:
    return run_source(folder, cases)


# What torch 2.13 says while it exports, whatever the model: it speaks of its own code, or of what no export needs.
_OWN_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "The tensor attributes .*_flat_weights.* were assigned during export",
    "No complete tensor found in the group!",
)


@contextmanager
def _torch_speaks_of_itself() -> Iterator[None]:
    """Leave out what torch says of its own code while it exports."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")  # torchvision is not installed
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in _OWN_WARNINGS:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        registry.setLevel(level)


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("safetensors", (WEIGHTS,), _write_weights, _run_weights, needs_example=False),
        Format("pt2", ("model.pt2",), _write_pt2, _run_pt2),
        Format("onnx", ("model.onnx",), _write_onnx, _run_onnx),
        Format("py", ("model.py", WEIGHTS), _write_py, _run_py),
    )
}
"""By name."""
