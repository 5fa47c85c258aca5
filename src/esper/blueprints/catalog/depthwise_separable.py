"""Depthwise-separable convolution."""

from esper.blueprints.catalog.norms import opening_norm
from esper.ir import Graph, Handle, Kind, Layout, Site, blueprint


@blueprint("depthwise_separable", layouts=(Layout.CHANNELS_1D, Layout.CHANNELS_2D), kind=Kind.MIXING)
def depthwise_separable(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W2 * gelu(D7 * (W1 * norm(x))), D7 mixing the positions of each channel alone.

    It is twice as wide as the host, but at least 16.

    References:
        Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks"; kernel 7 follows Liu et al. 2022, "A
        ConvNet for the 2020s".
    """
    width = max(2 * site.channels, 16)
    widened = g.conv(opening_norm(g), out=width, kernel=1, bias=False)
    mixed = g.gelu(g.conv(widened, out=width, kernel=7, groups=width))
    return g.conv(mixed, out=site.channels, kernel=1, init="zero")
