"""Convolutional bottleneck."""

from esper.blueprints.catalog.norms import opening_norm
from esper.ir import Graph, Handle, Kind, Layout, Site, blueprint


@blueprint("conv_bottleneck", layouts=(Layout.CHANNELS_1D, Layout.CHANNELS_2D), kind=Kind.MIXING)
def conv_bottleneck(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W2 * gelu(K3 * gelu(W1 * norm(x))), W being 1x1 and K 3x3, of half the width but at least 8.

    References:
        He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.1; pre-activation and the zero-initialised
        last convolution follow Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1.
    """
    width = max(site.channels // 2, 8)
    narrow = g.gelu(g.conv(opening_norm(g), out=width, kernel=1))
    mixed = g.gelu(g.conv(narrow, out=width, kernel=3))
    return g.conv(mixed, out=site.channels, kernel=1, init="zero")
