"""Multi-head self-attention."""

from esper.blueprints.catalog.norms import opening_norm
from esper.ir import Graph, Handle, Kind, Layout, Site, blueprint

_HEAD_WIDTH = 64
"""Widest head, as in Vaswani et al. 2017."""


@blueprint("self_attention", layouts=(Layout.TOKENS, Layout.CHANNELS_1D, Layout.CHANNELS_2D), kind=Kind.MIXING)
def self_attention(g: Graph, site: Site) -> Handle:
    """Draw F(x) = W_o attention(W_q n, W_k n, W_v n) with n = norm(x), as wide as the host.

    Tokens look back only where the site is causal; positions of a map see each other. There is no key bias, which softmax
    would ignore, no value bias, which the output's bias already gives, and no query bias.

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3.2. Key bias: Kobayashi et al. 2020, "Attention is Not Only
        a Weight".
    """
    entered = opening_norm(g)
    query, key, value = (g.pointwise(entered, out=site.channels, bias=False) for _ in range(3))
    causal = site.causal and site.layout is Layout.TOKENS
    mixed = g.attention(query, key, value, heads=heads_for(site.channels), causal=causal)
    return g.pointwise(mixed, out=site.channels, init="zero")


def heads_for(channels: int) -> int:
    """Return the fewest heads, at least 2 where that leaves 8 channels to each, that are no wider than 64."""
    least = max(-(-channels // _HEAD_WIDTH), 2 if channels >= 16 and channels % 2 == 0 else 1)
    return next(heads for heads in range(least, channels + 1) if channels % heads == 0)
