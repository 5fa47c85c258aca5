"""A norm where the host has none."""

from esper.ir import Graph, Handle, Kind, Layout, Site, blueprint


@blueprint("norm", layouts=(Layout.CHANNELS_1D, Layout.CHANNELS_2D), kind=Kind.RECALIBRATING)
def norm(g: Graph, site: Site) -> Handle:
    """Draw x + gain * x / rms(x) at a host, the root mean square over the channels of a position, the gains zero at birth.

    References:
        Zhang, Sennrich 2019, "Root Mean Square Layer Normalization". Bachlechner et al. 2020, "ReZero is All You Need", for a
        branch that begins at zero.
    """
    normal = g.rms_norm(g.input)
    return g.conv(normal, out=site.channels, kernel=1, groups=site.channels, bias=False, init="zero")
