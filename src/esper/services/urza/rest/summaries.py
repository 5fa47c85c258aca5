"""Kernels as a search shows them, from rows to JSON without a model for each."""

import msgspec

from esper.services.urza.reader import Rows


class _Summary(msgspec.Struct):
    """`esper.contracts.store_calls.KernelSummary`; the tags are JSON already."""

    kernel_id: str
    blueprint_id: str
    tags: msgspec.Raw
    performance: float | None
    device: str


def encoded(rows: Rows) -> bytes:
    """Return the rows of `KernelManager.search_rows` as a JSON array."""
    return _ENCODER.encode([
        _Summary(row[0], row[1], msgspec.Raw(row[2].encode()), row[3], row[4]) for row in rows
    ])  # fmt: skip


_ENCODER = msgspec.json.Encoder()
