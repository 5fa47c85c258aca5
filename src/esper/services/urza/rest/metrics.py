"""What the service counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OUTSIDE = "other"
"""Stands for every path that is no endpoint."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class RestMetrics:
    """The metrics of one service, in a registry of their own; endpoints are named by their patterns.

    Attributes:
        registry: Where they are collected.
        requests: Answers, by endpoint, method and status.
        seconds: How long answers took.
        in_hand: Requests that are being answered.
        refused: Requests that never reached an endpoint, by why.
        cached: Reads of what cannot change, by whether memory had it.
        collections: Collections of garbage, by how they ended.
        collected_bytes: What they removed.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "esper_urza_requests_total", "Answers.", ("endpoint", "method", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "esper_urza_request_seconds", "Time of answers.", ("endpoint",), registry=self.registry, buckets=_SECONDS
        )
        self.in_hand = Gauge("esper_urza_requests_in_hand", "Requests that are being answered.", registry=self.registry)
        self.refused = Counter(
            "esper_urza_refused_total", "Requests that reached no endpoint.", ("why",), registry=self.registry
        )
        self.cached = Counter(
            "esper_urza_immutable_reads_total", "Reads of what cannot change.", ("found",), registry=self.registry
        )
        self.collections = Counter(
            "esper_urza_collections_total", "Collections of garbage.", ("end",), registry=self.registry
        )
        self.collected_bytes = Counter(
            "esper_urza_collected_bytes_total", "Bytes that were removed as garbage.", registry=self.registry
        )
