"""What every service counts of its requests."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

OUTSIDE = "other"
"""Stands for every path that is no endpoint."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class RequestMetrics:
    """The metrics of one service, in a registry of their own; endpoints are named by their patterns.

    Args:
        service: Name of the service, as metrics have it.

    Attributes:
        registry: Where they are collected.
        requests: Answers, by endpoint, method and status.
        seconds: How long answers took.
        in_hand: Requests that are being answered.
        refused: Requests that never reached an endpoint, by why.
    """

    def __init__(self, service: str) -> None:
        self.registry = own = CollectorRegistry()
        name = f"esper_{service}"
        self.requests = Counter(f"{name}_requests_total", "Answers.", ("endpoint", "method", "status"), registry=own)
        self.seconds = Histogram(
            f"{name}_request_seconds", "Time of answers.", ("endpoint",), registry=own, buckets=_SECONDS
        )
        self.in_hand = Gauge(f"{name}_requests_in_hand", "Requests that are being answered.", registry=own)
        self.refused = Counter(f"{name}_refused_total", "Requests that reached no endpoint.", ("why",), registry=own)
        self._requests: dict[tuple[str, str, int], Counter] = {}
        self._seconds: dict[str, Histogram] = {}

    def answered(self, endpoint: str, method: str, status: int, seconds: float) -> None:
        """Count an answer; the series of each endpoint is looked up once, which takes longer than to count."""
        key = (endpoint, method, status)
        if key not in self._requests:
            self._requests[key] = self.requests.labels(endpoint, method, str(status))
            self._seconds[endpoint] = self.seconds.labels(endpoint)
        self._requests[key].inc()
        self._seconds[endpoint].observe(seconds)
