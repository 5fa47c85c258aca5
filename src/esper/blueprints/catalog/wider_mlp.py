"""More hidden units."""

from esper.ir import Graph, Handle, Kind, Layout, Reads, Site, blueprint


@blueprint("wider_mlp", layouts=(Layout.FEATURES, Layout.TOKENS), kind=Kind.WIDENING, reads=Reads.INPUT)
def wider_mlp(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W2 act(W1 x + b1) + b2 of what enters, position by position, act being the host's or else gelu.

    Beside two linear layers with that nonlinearity between them it is exactly what more hidden units would be, W1 reading for
    them and W2 writing nothing yet; beside a single layer it is a hidden layer around it. There is no norm, as those units
    have none. It has as many parameters as a perceptron 4 times as wide as what leaves, but at least 64 units.

    References:
        Chen, Goodfellow, Shlens 2016, "Net2Net: Accelerating Learning via Knowledge Transfer", whose wider networks compute
        what they did too.
    """
    width = max(round(8 * site.channels**2 / (g.input.channels + site.channels)), 64)
    hidden = g.apply(site.activation or "gelu", g.pointwise(g.input, out=width))
    return g.pointwise(hidden, out=site.channels, init="zero")
