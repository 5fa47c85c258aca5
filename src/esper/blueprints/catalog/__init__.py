"""Catalogue: the blueprints that Esper ships, one file each, without torch."""

from esper.blueprints.catalog.conv_bottleneck import conv_bottleneck
from esper.blueprints.catalog.depthwise_separable import depthwise_separable
from esper.blueprints.catalog.gated_conv import gated_conv
from esper.blueprints.catalog.gated_mlp import gated_mlp
from esper.blueprints.catalog.low_rank import low_rank
from esper.blueprints.catalog.mlp_adapter import mlp_adapter
from esper.blueprints.catalog.norm import norm
from esper.blueprints.catalog.self_attention import self_attention
from esper.blueprints.catalog.squeeze_excite import squeeze_excite
from esper.blueprints.catalog.transformer_block import transformer_block
from esper.blueprints.catalog.wider_conv import wider_conv
from esper.blueprints.catalog.wider_mlp import wider_mlp

__all__ = [
    "CATALOG",
    "conv_bottleneck",
    "depthwise_separable",
    "gated_conv",
    "gated_mlp",
    "low_rank",
    "mlp_adapter",
    "norm",
    "self_attention",
    "squeeze_excite",
    "transformer_block",
    "wider_conv",
    "wider_mlp",
]

CATALOG = (
    "gated_conv",
    "transformer_block",
    "self_attention",
    "gated_mlp",
    "depthwise_separable",
    "mlp_adapter",
    "conv_bottleneck",
    "low_rank",
    "squeeze_excite",
    "norm",
    "wider_mlp",
    "wider_conv",
)
"""Names of the shipped blueprints."""
