"""How large a blueprint may be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Caps:
    """Limits that keep a blueprint from being a resource bomb.

    The defaults are the outermost limits, which no blueprint that exists exceeds; a service may draw narrower ones.

    Attributes:
        json_bytes: Length of the JSON text.
        nodes: Number of operations.
        depth: Operations on the longest path.
        factors: How many values of ordinary size, such as the input or what a norm leaves, one value is a product of: float32
            holds 2^64, and few powers beyond.
        channels: Width of any value.
        params: Trainable parameters; 2^28 are 1 GiB in float32.
        flops_per_position: Forward FLOPs for one example of one position.
    """

    json_bytes: int = 262_144
    nodes: int = 256
    depth: int = 128
    factors: int = 64
    channels: int = 65_536
    params: int = 2**28
    flops_per_position: int = 2**34


CAPS = Caps()
