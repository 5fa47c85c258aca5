"""How tensors lie in memory, so that each is written from where it lies and comes back with the same strides."""

from dataclasses import dataclass

import torch
from torch import Tensor

STORED: dict[torch.dtype, tuple[str, torch.dtype]] = {
    torch.bool: ("BOOL", torch.bool),
    torch.uint8: ("U8", torch.uint8),
    torch.int8: ("I8", torch.int8),
    torch.int16: ("I16", torch.int16),
    torch.uint16: ("U16", torch.uint16),
    torch.int32: ("I32", torch.int32),
    torch.uint32: ("U32", torch.uint32),
    torch.int64: ("I64", torch.int64),
    torch.uint64: ("U64", torch.uint64),
    torch.float16: ("F16", torch.float16),
    torch.bfloat16: ("BF16", torch.bfloat16),
    torch.float32: ("F32", torch.float32),
    torch.float64: ("F64", torch.float64),
    torch.float8_e4m3fn: ("F8_E4M3", torch.float8_e4m3fn),
    torch.float8_e5m2: ("F8_E5M2", torch.float8_e5m2),
    torch.complex64: ("F32", torch.float32),
    torch.complex128: ("F64", torch.float64),
}
"""Types that can be stored: safetensors' name, and the type that is written (pairs of real numbers for complex ones)."""
NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in STORED}


@dataclass(frozen=True)
class Layout:
    """Type and memory of one tensor.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        stride: Its strides, where they are not those of a contiguous tensor; it is then stored flat, as it lies in memory.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        pair = (2,) if self.dtype.is_complex else ()
        return (*(self.shape if self.stride is None else (_count(self.shape),)), *pair)

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return _count(self.shape) * self.dtype.itemsize

    def to_json(self) -> dict[str, object]:
        """Return it as data."""
        name = str(self.dtype).removeprefix("torch.")
        plain: dict[str, object] = {"dtype": name, "shape": list(self.shape)}
        return plain if self.stride is None else {**plain, "stride": list(self.stride)}

    @classmethod
    def from_json(cls, data: dict[str, object]) -> "Layout":
        """Read what ``to_json`` returned.

        Raises:
            ValueError: If it is not that.
        """
        shape, stride = _sizes(data["shape"]), data.get("stride")
        layout = cls(NAMES[str(data["dtype"])], shape, None if stride is None else _sizes(stride))
        if layout.stride is not None and not _is_dense(shape, layout.stride):
            raise ValueError(f"strides {layout.stride} do not belong to shape {shape}")
        return layout


def layout_of(tensor: Tensor) -> Layout | None:
    """Return the layout in which a tensor is stored; None where it has no plain memory of a type that can be stored."""
    plain = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    if not plain or tensor.dtype not in STORED or tensor.is_conj() or tensor.is_neg():
        return None
    shape, stride = tuple(tensor.shape), tensor.stride()
    natural = stride == _contiguous(shape) or not _is_dense(shape, stride)
    return Layout(tensor.dtype, shape, None if natural else stride)


def memory_of(tensor: Tensor, layout: Layout) -> Tensor:
    """Return a tensor's bytes in the order of ``layout``; without a copy where it lies so on the CPU."""
    if layout.stride is None:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
    else:
        flat = tensor.detach().cpu()
        flat = flat.as_strided((flat.numel(),), (1,), flat.storage_offset())
    return flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)


def tensor_from(stored: Tensor, layout: Layout) -> Tensor:
    """Return a tensor from what was stored.

    Raises:
        ValueError: If it is not of that layout.
    """
    if stored.dtype != STORED[layout.dtype][1] or tuple(stored.shape) != layout.stored_shape:
        raise ValueError(f"stored as {stored.dtype} of shape {tuple(stored.shape)}, listed as {layout}")
    tensor = torch.view_as_complex(stored) if layout.dtype.is_complex else stored
    return tensor if layout.stride is None else tensor.as_strided(layout.shape, layout.stride)


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Tell whether each place in memory from the first on is used by exactly one element."""
    if len(shape) != len(stride):
        return False
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return _count(shape) > 0


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _sizes(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"sizes {values!r}")
    return tuple(values)
