"""Low-rank linear map."""

from esper.ir import Graph, Handle, Kind, Site, blueprint


@blueprint("low_rank", kind=Kind.RECALIBRATING)
def low_rank(g: Graph, site: Site) -> Handle:
    """Draw F(x) = B A x, position by position, of an eighth of the host's width but at least rank 4: LoRA of the identity.

    It recalibrates what is there and folds into the layer before it; it adds no capacity to a host that is trained anyway.

    References:
        Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models".
    """
    rank = min(max(site.channels // 8, 4), site.channels)
    return g.pointwise(g.pointwise(g.input, out=rank, bias=False), out=site.channels, init="zero")
