"""Copies of nested values."""

import copy
from typing import Any

import torch
from torch import Tensor


def copied(value: Any) -> Any:
    """Return a copy whose tensors are detached and keep their memory format."""
    if isinstance(value, Tensor):
        return value.detach().clone(memory_format=torch.preserve_format)
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return copy.deepcopy(value)


def borrowed(value: Any) -> Any:
    """Return a value in containers of its own, whose tensors are the same memory, detached."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(borrowed(item) for item in value)
    if type(value) is dict:
        return {key: borrowed(item) for key, item in value.items()}
    return value
