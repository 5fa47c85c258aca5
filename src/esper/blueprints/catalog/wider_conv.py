"""More hidden channels."""

from esper.ir import Graph, Handle, Kind, Layout, Reads, Site, blueprint


@blueprint("wider_conv", layouts=(Layout.CHANNELS_1D, Layout.CHANNELS_2D), kind=Kind.WIDENING, reads=Reads.INPUT)
def wider_conv(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W * act(K * x) of what enters, K 3x3 and W 1x1, act being the host's or else gelu.

    It is as wide as what leaves, but at least 16: hidden channels beside those of the host's own convolutions.

    References:
        Chen, Goodfellow, Shlens 2016, "Net2Net: Accelerating Learning via Knowledge Transfer".
    """
    hidden = g.conv(g.input, out=max(site.channels, 16), kernel=3)
    return g.conv(g.apply(site.activation or "gelu", hidden), out=site.channels, kernel=1, init="zero")
