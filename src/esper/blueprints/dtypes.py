"""Number types of kernels, by the names under which they travel."""

import torch

from esper.errors import ConfigError

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


def dtype_named(dtype: torch.dtype | str) -> torch.dtype:
    """Return a type that a kernel can have.

    Args:
        dtype: The type, or its name such as ``float32``.

    Raises:
        ConfigError: If kernels cannot have it.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in NAMES:
        raise ConfigError(f"kernels cannot have the type {dtype}", todo=f"Choose one of {', '.join(DTYPES)}.")
    return found
