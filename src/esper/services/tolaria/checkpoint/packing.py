"""A nest of plain containers and tensors, taken apart into a JSON tree and a list of tensors, and put together again.

Whatever JSON cannot tell apart is written as an object with one key that names what it is: ``{"tuple": [...]}``. What is no
plain container is refused with its place, as reading it back would need to run code.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from esper.errors import ConfigError, ContractError
from esper.services.tolaria.checkpoint.layout import Layout, layout_of

MOST_LEVELS = 200
"""Containers within containers: far more than any training has, and less than Python's stack holds."""
MOST_DIGITS = 4000
"""Of a whole number; Python itself reads no more than 4300."""
SCALARS = frozenset({int, str, bool, type(None)})
MAPPINGS: dict[str, type] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}
TENSORS = (Tensor, nn.Parameter)


@dataclass
class Packed:
    """A state, taken apart.

    Attributes:
        tree: The containers, with the index of a tensor where there was one.
        tensors: The tensors, each once, on their devices and still the caller's own memory.
        layouts: How each of them lies in memory.
        names: A name for each: the place where it was met first.
    """

    tree: Any = None
    tensors: list[Tensor] = field(default_factory=list)
    layouts: list[Layout] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def pack(state: object) -> Packed:
    """Take a state apart.

    Args:
        state: Dicts, lists, tuples, numbers, strings, None, tensors and numpy arrays, nested in any way.

    Returns:
        Its parts. Tensors that are the same view of the same memory are one.

    Raises:
        ConfigError: If something else is in it; it says where.
    """
    packer = _Packer()
    packer.packed.tree = packer.encoded(state, ())
    return packer.packed


def unpack(tree: object, tensors: list[Tensor]) -> Any:
    """Put a state together again.

    Raises:
        ContractError: If the tree is not one that ``pack`` made.
    """
    try:
        return _decoded(tree, tensors)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as wrong:
        raise ContractError("the structure is no state", why=f"{type(wrong).__name__}: {wrong}") from wrong


class _Packer:
    def __init__(self) -> None:
        self.packed = Packed()
        self._known: dict[object, int] = {}

    def encoded(self, value: Any, path: tuple[str, ...]) -> Any:
        kind = type(value)
        if kind in SCALARS:
            return value if kind is not int else _whole(value, path)
        if kind is float:
            return value if value - value == 0 else {"float": repr(value)}
        if len(path) > MOST_LEVELS:
            raise _refused(path[:6], f"it is nested more than {MOST_LEVELS} levels deep, or contains itself")
        if kind is list or kind is tuple:
            items = self._items(value, path)
            return items if kind is list else {"tuple": items}
        for name, mapping in MAPPINGS.items():
            if kind is mapping:
                return self._mapping(name, value, path)
        return self._leaf(value, path)

    def _items(self, values: "list[Any] | tuple[Any, ...]", path: tuple[str, ...]) -> list[Any]:
        kinds = set(map(type, values))
        if kinds <= SCALARS and (int not in kinds or max(_bits(value) for value in values) <= 64):
            return list(values)
        return [self.encoded(item, (*path, str(index))) for index, item in enumerate(values)]

    def _mapping(self, name: str, value: Mapping[Any, Any], path: tuple[str, ...]) -> dict[str, Any]:
        if name == "dict" and all(type(key) is str for key in value):
            return {"dict": {key: self.encoded(item, (*path, key)) for key, item in value.items()}}
        pairs = [
            [self.encoded(key, (*path, "key")), self.encoded(item, (*path, str(key)))] for key, item in value.items()
        ]
        return {"pairs": pairs} if name == "dict" else {name: pairs}

    def _leaf(self, value: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if type(value) in TENSORS:
            return {"tensor": self._tensor(value, path)}
        if type(value) is np.ndarray:
            return {"array": self._tensor(_from_numpy(value, path), path)}
        if isinstance(value, np.generic):
            return {"scalar": self._tensor(_from_numpy(np.array(value), path), path)}
        raise _refused(path, f"a {type(value).__qualname__} is no plain container, number, string or tensor")

    def _tensor(self, tensor: Tensor, path: tuple[str, ...]) -> int:
        layout = layout_of(tensor)
        if layout is None:
            raise _refused(path, f"a tensor of type {tensor.dtype} and layout {tensor.layout} has no plain memory")
        key = _view_of(tensor)
        if key not in self._known:
            self._known[key] = len(self.packed.tensors)
            self.packed.tensors.append(tensor.detach())
            self.packed.layouts.append(layout)
            self.packed.names.append(".".join(path) or "state")
        return self._known[key]


def _view_of(tensor: Tensor) -> object:
    """Return what two tensors have in common if and only if they are the same view of the same memory."""
    if tensor.numel() == 0:
        return object()
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device


def _from_numpy(array: "np.ndarray[Any, Any]", path: tuple[str, ...]) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, copy=True, order="C"))
    except TypeError as error:
        raise _refused(path, f"a numpy array of type {array.dtype} cannot be a tensor") from error


def _bits(value: Any) -> int:
    return value.bit_length() if type(value) is int else 0


def _whole(value: int, path: tuple[str, ...]) -> int:
    if value.bit_length() > 3 * MOST_DIGITS:
        raise _refused(path, f"a whole number of {value.bit_length()} bits is too long")
    return value


def _refused(path: tuple[str, ...], why: str) -> ConfigError:
    return ConfigError(
        f"the state cannot be stored: {'.'.join(path) or 'the whole of it'}",
        why=why,
        todo="give dicts, lists, tuples, numbers, strings, None and tensors, as state_dict() methods return",
        code="ESP-2180",
    )


def _decoded(tree: Any, tensors: list[Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decoded(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    return _DECODERS[kind](content, tensors)


def _pairs(content: Any, tensors: list[Tensor]) -> list[tuple[Any, Any]]:
    return [(_decoded(key, tensors), _decoded(item, tensors)) for key, item in content]


def _float(text: str, _tensors: list[Tensor]) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"float {text!r}")
    return float(text)


_DECODERS: dict[str, Callable[[Any, list[Tensor]], Any]] = {
    "tuple": lambda content, tensors: tuple(_decoded(content, tensors)),
    "dict": lambda content, tensors: {key: _decoded(item, tensors) for key, item in content.items()},
    "pairs": lambda content, tensors: dict(_pairs(content, tensors)),
    "ordered": lambda content, tensors: OrderedDict(_pairs(content, tensors)),
    "counter": lambda content, tensors: Counter(dict(_pairs(content, tensors))),
    "float": _float,
    "tensor": lambda index, tensors: tensors[index],
    "array": lambda index, tensors: tensors[index].numpy(),
    "scalar": lambda index, tensors: tensors[index].numpy()[()],
}
