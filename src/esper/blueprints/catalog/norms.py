"""The norm that opens every blueprint of the catalogue."""

from esper.ir import Graph, Handle


def opening_norm(g: Graph) -> Handle:
    """Return the input normalised example by example, so that a graft learns alike whatever the scale of its host.

    Channels-first maps get a group norm of one group: it takes off one mean and one scale for each example and leaves what
    differs between positions. Features and tokens get a layer norm. Batch norm is not used, although hosts do: its running
    statistics start wrong for a newborn, lag behind in evaluation, go wrong when weights are averaged, and tie the examples
    of a batch together. A single channel is not normalised: its layer norm would be constant.

    References:
        Wu, He 2018, "Group Normalization". Ba, Kiros, Hinton 2016, "Layer Normalization".
    """
    if g.layout.is_channels_first:
        return g.group_norm(g.input, groups=1)
    return g.layer_norm(g.input) if g.input.channels > 2 else g.input


def rounded_up(width: float, multiple: int) -> int:
    """Return the next multiple of ``multiple``."""
    return int(-(-width // multiple) * multiple)
