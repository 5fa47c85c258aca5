"""Gated perceptron."""

from esper.blueprints.catalog.norms import opening_norm, rounded_up
from esper.ir import Graph, Handle, Kind, Site, blueprint


@blueprint("gated_mlp", kind=Kind.GATED)
def gated_mlp(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W2 ((V n) . silu(G n)) with n = norm(x), position by position: SwiGLU.

    The width is 8/3 of the host's, rounded up to a multiple of 8, so that it has as many parameters as an MLP of 4 times the
    host's width; at least 48.

    References:
        Shazeer 2020, "GLU Variants Improve Transformer", equation 6.
    """
    width = max(rounded_up(8 * site.channels / 3, 8), 48)
    entered = opening_norm(g)
    value = g.pointwise(entered, out=width)
    gate = g.silu(g.pointwise(entered, out=width))
    return g.pointwise(g.mul(value, gate), out=site.channels, init="zero")
