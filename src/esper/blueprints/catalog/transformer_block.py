"""Whole transformer block."""

from esper.blueprints.catalog.norms import opening_norm
from esper.blueprints.catalog.self_attention import heads_for
from esper.ir import Graph, Handle, Kind, Layout, Site, blueprint


@blueprint("transformer_block", layouts=(Layout.TOKENS,), kind=Kind.BLOCK)
def transformer_block(g: Graph, site: Site) -> Handle:
    """Draw F(x) = a + W2 gelu(W1 norm(x + a)) with a = W_o attention(norm(x)): a pre-norm block, born as the identity.

    Both output projections begin at zero, as in a network that is made deeper by stacking; the attention has no key bias, which
    softmax would ignore, and no other that the output's bias already gives.

    References:
        Vaswani et al. 2017, "Attention Is All You Need", section 3; its pre-norm form after Xiong et al. 2020, "On Layer
        Normalization in the Transformer Architecture"; birth as the identity after Shen et al. 2022, "Staged Training for
        Transformer Language Models".
    """
    entered = opening_norm(g)
    query, key, value = (g.pointwise(entered, out=site.channels, bias=False) for _ in range(3))
    mixed = g.attention(query, key, value, heads=heads_for(site.channels), causal=site.causal)
    attended = g.pointwise(mixed, out=site.channels, init="zero")
    between = g.layer_norm(g.input + attended) if site.channels > 2 else g.input + attended
    hidden = g.gelu(g.pointwise(between, out=4 * site.channels))
    return attended + g.pointwise(hidden, out=site.channels, init="zero")
