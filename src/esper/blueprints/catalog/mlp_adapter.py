"""Two-layer perceptron."""

from esper.blueprints.catalog.norms import opening_norm
from esper.ir import Graph, Handle, Kind, Site, blueprint


@blueprint("mlp_adapter", kind=Kind.PLAIN)
def mlp_adapter(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W2 gelu(W1 norm(x) + b1) + b2, position by position, 4 times as wide as the host but at least 64.

    References:
        Vaswani et al. 2017, "Attention Is All You Need", equation 2, of which it is the pre-norm form.
    """
    hidden = g.gelu(g.pointwise(opening_norm(g), out=max(4 * site.channels, 64)))
    return g.pointwise(hidden, out=site.channels, init="zero")
