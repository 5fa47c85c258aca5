"""Squeeze and excitation."""

from esper.ir import Graph, Handle, Kind, Layout, Site, blueprint

_REDUCTION = 4


@blueprint("squeeze_excite", layouts=(Layout.CHANNELS_1D, Layout.CHANNELS_2D), kind=Kind.RECALIBRATING)
def squeeze_excite(g: Graph, site: Site) -> Handle:
    """Draw F(x) = x . tanh(W2 relu(W1 mean(x))), the mean over all positions, W1 to a quarter of the channels but at least 8.

    y = x + F(x) is x times a gate of its own for each channel, 1 at birth and between 0 and 2, as twice a sigmoid is.

    References:
        Hu, Shen, Sun 2018, "Squeeze-and-Excitation Networks", equations 2 to 4.
    """
    squeezed = g.position_mean(g.input)
    hidden = g.relu(g.conv(squeezed, out=max(site.channels // _REDUCTION, 8), kernel=1))
    gate = g.tanh(g.conv(hidden, out=site.channels, kernel=1, init="zero"))
    return g.mul(g.input, gate)
