"""What the specification puts on the wire: streams, groups, metrics, endpoints and ports."""

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest

from esper.contracts.ids import MessageId
from esper.contracts.topics import TOPICS, Message
from esper.ir import BlueprintRegistry
from esper.ports import Acknowledge, DeliveryHandler
from esper.runtime.background import BackgroundLoop, Bridge
from esper.services.nissa.counters import RunCounters
from esper.services.tamiyo.analyzer_service import AnalyzerService
from esper.services.tolaria.kernels import KernelShelf
from esper.telemetry.metrics import Metrics

STREAMS = (
    "telemetry.seed.health",
    "control.adaptation.decision",
    "blueprints.submitted",
    "system.events.epoch",
    "innovation.field_reports",
    "compilation.events",
)
METRICS: dict[str, tuple[tuple[str, ...], str]] = {
    "esper_adaptations_total": (("type", "strategy"), ""),
    "esper_cpu_usage_percent": (("service", "instance"), "system metrics are not collected yet"),
    "esper_memory_usage_bytes": (("service", "instance"), "system metrics are not collected yet"),
    "esper_kernel_executions_total": (("layer", "seed", "kernel_id"), "executions are not counted yet"),
    "esper_kernel_latency_seconds": (("layer", "seed"), "latencies are not measured yet"),
    "esper_training_loss": (("model", "phase"), "losses are not exported yet"),
}
ENDPOINTS = (
    ("urza", "POST", "/api/v1/blueprints"),
    ("urza", "GET", "/api/v1/kernels/search"),
    ("urza", "GET", "/metrics"),
    ("tezzeret", "POST", "/api/v1/kernels/execute"),
    ("tezzeret", "GET", "/metrics"),
    ("tamiyo", "POST", "/api/v1/decide"),
    ("tamiyo", "GET", "/metrics"),
    ("nissa", "GET", "/metrics"),
)
SERVED = ("urza", "tezzeret")
DEPLOYED = {
    "urza": ("8000:8000", "DATABASE_URL", "S3_BUCKET"),
    "tamiyo": ("8001:8001", "REDIS_URL", "URZA_URL"),
    "tezzeret": ("8002:8002", "URZA_URL", "NUM_WORKERS"),
    "nissa": ("9090:9090", "REDIS_URL"),
    "postgres": ("postgres:16",),
    "redis": ("6379",),
}
ROOT = Path(__file__).resolve().parents[2]


class Listening:
    """A bus that writes down who subscribes to what."""

    def __init__(self) -> None:
        self.groups: set[tuple[str, str]] = set()
        self._joined = asyncio.Semaphore(0)

    async def publish(
        self, stream: str, message: Message, *, run_id: str | None = None, message_id: MessageId | None = None
    ) -> MessageId:
        return MessageId("message-1")

    async def subscribe(
        self,
        stream: str,
        group: str,
        handler: DeliveryHandler,
        *,
        start_from: str = ">",
        acknowledge: Acknowledge = Acknowledge.AFTER_HANDLING,
    ) -> None:
        self.groups.add((stream, group))
        self._joined.release()

    async def heard(self, groups: int) -> None:
        """Return once so many groups have subscribed."""
        for _ in range(groups):
            await self._joined.acquire()

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("stream", STREAMS)
def test_a_specified_stream_is_declared(stream: str) -> None:
    assert TOPICS[stream].stream == stream


def test_the_controller_and_the_counters_listen_to_health_in_their_own_groups() -> None:
    bus = Listening()
    asyncio.run(AnalyzerService(bus).run())
    asyncio.run(RunCounters(bus).run())
    assert {group for stream, group in bus.groups if stream == "telemetry.seed.health"} == {
        "tamiyo-service", "nissa-execution",
    }  # fmt: skip


def test_every_run_listens_in_a_group_of_its_own() -> None:
    bus, loop = Listening(), BackgroundLoop()
    bridge = Bridge(loop)
    library: Any = None
    try:
        for run_id in ("run-1", "run-2"):
            KernelShelf(bridge, library, bus, BlueprintRegistry(), run_id=run_id).request([])
        bridge.wait(bridge.submit(bus.heard(2)), limit_s=10.0)
    finally:
        loop.close()
    assert {group for _, group in bus.groups} == {"execution-service.run-1", "execution-service.run-2"}


@pytest.mark.xfail(reason="the controller does not run on its own yet", strict=True, raises=ImportError)
def test_the_autonomous_controller_listens_in_a_group_of_its_own() -> None:
    module = importlib.import_module("esper.services.tamiyo.autonomous_service")
    assert module.GROUP == "tamiyo-autonomous"


def _metrics() -> list[Any]:
    return [
        pytest.param(name, labels, marks=pytest.mark.xfail(reason=later, strict=True, raises=KeyError) if later else ())
        for name, (labels, later) in METRICS.items()
    ]


@pytest.mark.parametrize(("name", "labels"), _metrics())
def test_a_specified_metric_has_its_labels(name: str, labels: tuple[str, ...]) -> None:
    registry: Any = Metrics().registry
    assert registry._names_to_collectors[name]._labelnames == labels


@pytest.mark.xfail(reason="latencies are not measured yet", strict=True, raises=KeyError)
def test_the_latency_of_a_kernel_has_the_specified_buckets() -> None:
    registry: Any = Metrics().registry
    bounds = registry._names_to_collectors["esper_kernel_latency_seconds"]._upper_bounds
    assert bounds == [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, float("inf")]


def _endpoints() -> list[Any]:
    later = pytest.mark.xfail(reason="this part is not served over HTTP yet", strict=True, raises=ImportError)
    return [pytest.param(*row, marks=() if row[0] in SERVED else later) for row in ENDPOINTS]


@pytest.mark.parametrize(("part", "method", "path"), _endpoints())
def test_a_specified_endpoint_is_served(part: str, method: str, path: str) -> None:
    app = importlib.import_module(f"esper.services.{part}.main").app
    assert (method, path) in {
        (verb, route.path) for route in app.routes for verb in getattr(route, "methods", None) or ()
    }


@pytest.mark.xfail(reason="there is no deployment yet", strict=True, raises=FileNotFoundError)
@pytest.mark.parametrize("part", DEPLOYED)
def test_a_specified_service_is_deployed_on_its_port_with_its_variables(part: str) -> None:
    folder = ROOT / "deploy"
    files = list(folder.rglob("*compose*.y*ml"))
    if not files:
        raise FileNotFoundError(folder)
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert f"{part}:" in text
    assert [wanted for wanted in DEPLOYED[part] if wanted not in text] == []


@pytest.mark.xfail(reason="no dashboard is exported yet", strict=True, raises=ImportError)
async def test_the_dashboard_has_its_title_and_its_panels() -> None:
    exporter = importlib.import_module("esper.services.nissa.exporters").GrafanaExporter()
    dashboard = await exporter.export_dashboard()
    dashboard = dashboard.get("dashboard", dashboard)
    assert dashboard["title"] == "Esper Morphogenetic Platform"
    titles = " ".join(str(panel.get("title", "")).lower() for panel in dashboard["panels"])
    assert [panel for panel in ("execution", "training", "adaptation", "health") if panel not in titles] == []
