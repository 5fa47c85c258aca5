"""On what inputs a kernel is validated, and what that takes: known before anything is built, without torch."""

from dataclasses import dataclass
from math import prod

from esper.ir import BlueprintIR, Layout, cost, ops

_AFFORDABLE_FLOPS = 10**8
"""A probe as wide as the widest convolution reaches is used where one example of it costs no more."""


@dataclass(frozen=True)
class Probe:
    """The shape of one validation input.

    Attributes:
        batch: Examples.
        extent: Sizes of the position axes.
    """

    batch: int
    extent: tuple[int, ...]

    def shape(self, ir: BlueprintIR) -> tuple[int, ...]:
        """Return the shape of the input tensor."""
        if ir.layout.is_channels_first:
            return (self.batch, ir.channels, *self.extent)
        return (self.batch, *self.extent, ir.channels)

    @property
    def rows(self) -> int:
        """Positions of all examples."""
        return self.batch * prod(self.extent)


@dataclass(frozen=True)
class Probes:
    """The inputs of one validation: batches of 1, 3 and 8, one of them with odd extents only.

    Attributes:
        wide: One example, as wide as the widest convolution reaches where that is affordable.
        odd: Three examples with odd extents.
        batch: Eight examples; gates that train or measure use it.
    """

    wide: Probe
    odd: Probe
    batch: Probe

    @property
    def all(self) -> tuple[Probe, Probe, Probe]:
        """Return every one."""
        return self.wide, self.odd, self.batch


def probes_of(ir: BlueprintIR) -> Probes:
    """Choose the inputs on which a blueprint's kernel is validated; they are as small as its operations allow."""
    least = _least_extent(ir)
    wide = _extent(ir.layout, max(4, least, _reach(ir)))
    if cost(ir, wide).flops > _AFFORDABLE_FLOPS:
        wide = _extent(ir.layout, max(4, least))
    odd = max(3, least) | 1
    batch = max(2, least)
    return Probes(Probe(1, wide), Probe(3, _extent(ir.layout, odd, step=2)), Probe(8, _extent(ir.layout, batch)))


def _extent(layout: Layout, size: int, *, step: int = 1) -> tuple[int, ...]:
    """Return sizes of the position axes: images are wider than high, so that mixed-up axes show."""
    return tuple(size + axis * step for axis in range(layout.rank))


def _least_extent(ir: BlueprintIR) -> int:
    return max((ops.get(node.op).min_extent(use) for node, use in zip(ir.nodes, ir.uses, strict=True)), default=1)


def _reach(ir: BlueprintIR) -> int:
    """Return the positions that the widest convolution sees at once."""
    reaches = (
        use.attrs.integer("dilation") * (use.attrs.integer("kernel") - 1) + 1
        for use in ir.uses
        if "kernel" in use.attrs
    )
    return max(reaches, default=1)


@dataclass(frozen=True)
class Load:
    """What one validation takes, at most.

    Attributes:
        flops: Forward FLOPs of all passes.
        elements: Numbers held at once besides the parameters.
        params: Trainable parameters.
    """

    flops: int
    elements: int
    params: int


_PASSES = 60
"""Forward passes of one validation, a backward pass counted as two (counted over the catalogue: 45 to 60)."""


def load_of(ir: BlueprintIR, probes: Probes) -> Load:
    """Count what validating a blueprint takes.

    Args:
        ir: The blueprint.
        probes: Its inputs.
    """
    costs = [probe.batch * cost(ir, probe.extent).flops for probe in probes.all]
    rows = max(probe.rows for probe in probes.all)
    widths = [ops.get(node.op).width(use) for node, use in zip(ir.nodes, ir.uses, strict=True)]
    columns = [
        tensor.numel // max(1, tensor.shape[0])
        for node, use in zip(ir.nodes, ir.uses, strict=True)
        for tensor in ops.get(node.op).tensors(use)
    ]
    maps = sum(probe.batch * prod(probe.extent) ** 2 for probe in probes.all) * sum(
        use.attrs.integer("heads") for use in ir.uses if "heads" in use.attrs
    )
    elements = rows * (ir.channels + sum(widths) + max(columns, default=0)) + maps
    return Load(_PASSES * max(costs), elements, cost(ir, probes.wide.extent).params)
