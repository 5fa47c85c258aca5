"""Models that decode with a cache: a later call of theirs sees one token, and must compute what the whole sequence did."""

import inspect

from torch import nn

from esper.ir import Layout

CACHES = frozenset(
    (
        "past_key_values",
        "past_key_value",
        "layer_past",
        "kv_cache",
        "cache",
        "cache_params",
        "inference_params",
        "input_pos",
        "start_pos",
        "use_cache",
    )
)
"""Arguments by which models take a cache, or the position up to which it is filled."""


def decodes_with_cache(model: nn.Module) -> bool:
    """Tell whether a model, or a part of it, takes a cache of earlier tokens."""
    return any(
        CACHES & inspect.signature(kind.forward).parameters.keys() for kind in {type(m) for m in model.modules()}
    )


def alone(layout: Layout | None) -> Layout | None:
    """Return the layout in which a graft computes on each token alone, as it has no cache of its own."""
    return Layout.FEATURES if layout is Layout.TOKENS else layout
