"""What the forge counts."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from esper.services.tezzeret.assignment import Ending
from esper.services.tezzeret.worker import TezzeretWorker


class WorkerCollector(Collector):
    """Reads a worker when it is asked.

    Args:
        worker: The worker.
    """

    def __init__(self, worker: TezzeretWorker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """Yield jobs by their end, those in hand, outages and children."""
        jobs = CounterMetricFamily("esper_tezzeret_jobs", "Jobs that ended.", labels=("ending",))
        for ending in Ending:
            jobs.add_metric((ending.value,), self._worker.endings[ending])
        yield jobs
        yield GaugeMetricFamily("esper_tezzeret_jobs_in_hand", "Jobs that are held.", self._worker.in_hand)
        yield CounterMetricFamily("esper_tezzeret_outages", "Answers that did not come.", self._worker.outages)
        yield CounterMetricFamily("esper_tezzeret_children", "Children started.", self._worker.pool.started)
