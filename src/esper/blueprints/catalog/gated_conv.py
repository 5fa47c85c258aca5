"""Gated convolution."""

from esper.blueprints.catalog.norms import opening_norm
from esper.ir import Graph, Handle, Kind, Layout, Site, blueprint


@blueprint("gated_conv", layouts=(Layout.CHANNELS_1D, Layout.CHANNELS_2D), kind=Kind.GATED_MIXING)
def gated_conv(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W * ((K * n) . silu(G * n)) with n = norm(x), K and G 3x3, W 1x1, of the host's width but at least 16.

    References:
        Dauphin et al. 2017, "Language Modeling with Gated Convolutional Networks", equation 1; silu for the gate follows
        Shazeer 2020, "GLU Variants Improve Transformer".
    """
    width = max(site.channels, 16)
    entered = opening_norm(g)
    value = g.conv(entered, out=width, kernel=3)
    gate = g.silu(g.conv(entered, out=width, kernel=3))
    return g.conv(g.mul(value, gate), out=site.channels, kernel=1, init="zero")
