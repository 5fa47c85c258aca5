"""Catalogue: the blueprints that Esper ships, one file each, without torch."""

from esper.blueprints.catalog.conv_bottleneck import conv_bottleneck
from esper.blueprints.catalog.gated_conv import gated_conv
from esper.blueprints.catalog.gated_mlp import gated_mlp
from esper.blueprints.catalog.mlp_adapter import mlp_adapter
from esper.blueprints.catalog.self_attention import self_attention

__all__ = ["CATALOG", "conv_bottleneck", "gated_conv", "gated_mlp", "mlp_adapter", "self_attention"]

CATALOG = ("gated_conv", "self_attention", "gated_mlp", "mlp_adapter", "conv_bottleneck")
"""Names of the shipped blueprints."""
