"""What the streams of the in-process bus and their groups have done and missed."""

from collections.abc import Mapping
from dataclasses import dataclass

from esper.services.oona.memory_stream import Stream


@dataclass(frozen=True)
class GroupCounts:
    """What one group has done and missed.

    Attributes:
        lag: Messages that wait for it.
        in_hand: Messages with a member now.
        handled: Messages acknowledged.
        redelivered: Tries after the first.
        dead: Messages that went to the dead letters.
        lost: Messages that were trimmed before it saw them.
        dropped: Messages that were acknowledged on receipt and not handled.
    """

    lag: int
    in_hand: int
    handled: int
    redelivered: int
    dead: int
    lost: int
    dropped: int = 0


@dataclass(frozen=True)
class StreamCounts:
    """What one stream holds and has lost."""

    held: int
    published: int
    trimmed: int
    groups: Mapping[str, GroupCounts]


def counted(stream: Stream) -> StreamCounts:
    """Return what a stream and its groups have done and missed so far."""
    groups = {
        name: GroupCounts(
            lag=stream.published - group.next_seq + len(group.returned),
            in_hand=group.in_hand,
            handled=group.handled,
            redelivered=group.redelivered,
            dead=group.dead,
            lost=group.lost,
            dropped=group.dropped,
        )
        for name, group in stream.groups.items()
    }
    return StreamCounts(held=len(stream), published=stream.published, trimmed=stream.trimmed, groups=groups)
