"""What a command line says of models and inputs, as objects."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from esper.errors import ConfigError, NotFound

SHAPE = "6,3,32,32 for numbers, 6,128:int64:1000 for whole numbers below 1000; several with ; between"
_FILES = (".npz", ".safetensors")


def base_named(name: str) -> nn.Module | Callable[[], nn.Module]:
    """Return what ``package.module:name`` names; modules of the present folder are found too.

    Raises:
        ConfigError: If the text has no such form, or the name is no model and nothing that makes one.
        NotFound: If there is no such module or name.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(
            f"--base {name!r} names nothing",
            todo="give package.module:make_model, what makes the host",
            code="ESP-2626",
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotFound(
            f"--base {name}", why=str(error), todo="run in the folder that has it", code="ESP-5111"
        ) from error
    if not hasattr(found, attribute):
        raise NotFound(f"--base {name}", why=f"{module} has no {attribute}", code="ESP-5111")
    base = getattr(found, attribute)
    if not callable(base):
        raise ConfigError(f"--base {name} is a {type(base).__name__}", todo="name what makes the host", code="ESP-2626")
    return base  # type: ignore[no-any-return]


def saved_model(folder: str) -> Path:
    """Return the folder of a saved model.

    Raises:
        NotFound: If there is none.
    """
    if not (Path(folder) / "config.json").is_file():
        raise NotFound(
            f"no model in {folder}", why="it has no config.json", todo="esper.save_pretrained(model, folder) writes one",
            code="ESP-5112",
        )  # fmt: skip
    return Path(folder)


def read_example(text: str) -> object:
    """Return inputs, from a file or as random numbers of a shape.

    Args:
        text: A ``.npz`` or ``.safetensors`` file, whose names are those of the model's arguments, or 0, 1, ... for
            their places; or shapes, as `SHAPE` has them.

    Raises:
        ConfigError: If it is neither.
        NotFound: If there is no such file.
    """
    path = Path(text)
    if path.suffix not in _FILES:
        generator = torch.Generator().manual_seed(0)
        return tuple(_drawn(part.strip(), generator) for part in text.split(";"))
    if not path.is_file():
        raise NotFound(f"--example {text}", why="there is no such file", code="ESP-5113")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _arrays(path)
    except Exception as error:  # each reader has errors of its own
        raise _bad(text, f"the file cannot be read: {error}") from error
    if all(name.isdecimal() for name in tensors):
        return tuple(tensors[name] for name in sorted(tensors, key=int))
    return tensors


def _arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _drawn(text: str, generator: torch.Generator) -> Tensor:
    shape, _, rest = text.partition(":")
    kind, _, high = (rest or "float32").partition(":")
    dtype = getattr(torch, kind, None)
    sizes = shape.replace("x", ",").split(",")
    if not isinstance(dtype, torch.dtype) or not all(size.strip().isdecimal() for size in sizes):
        raise _bad(text, "it is neither a file nor a shape")
    size = [int(each) for each in sizes]
    if dtype.is_floating_point:
        return torch.randn(size, generator=generator).to(dtype)
    if dtype is torch.bool:
        return torch.rand(size, generator=generator) < 0.5
    if not high.isdecimal() or int(high) < 1:
        raise _bad(text, "whole numbers need an upper end, such as the size of a vocabulary")
    return torch.randint(int(high), size, generator=generator).to(dtype)


def _bad(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"--example {text!r}", why=why, todo=f"give a {' or '.join(_FILES)} file, or a shape: {SHAPE}", code="ESP-2627"
    )
