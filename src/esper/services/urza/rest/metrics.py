"""What the service counts."""

from prometheus_client import Counter

from esper.services.rest.metrics import RequestMetrics


class RestMetrics(RequestMetrics):
    """What every service counts, and what this one does.

    Attributes:
        cached: Reads of what cannot change, by whether memory had it.
        collections: Collections of garbage, by how they ended.
        collected_bytes: What they removed.
    """

    def __init__(self) -> None:
        super().__init__("urza")
        self.cached = Counter(
            "esper_urza_immutable_reads_total", "Reads of what cannot change.", ("found",), registry=self.registry
        )
        self.collections = Counter(
            "esper_urza_collections_total", "Collections of garbage.", ("end",), registry=self.registry
        )
        self.collected_bytes = Counter(
            "esper_urza_collected_bytes_total", "Bytes that were removed as garbage.", registry=self.registry
        )
