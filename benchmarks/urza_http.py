"""How many requests does one worker of the store over HTTP answer, and how do they compare with MLflow's registry?"""

import asyncio
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from urllib.parse import urlencode

from benchmarks.support.report import Answer, Target
from benchmarks.support.urza_library import SETTINGS, fill, questions
from esper.contracts.store import BlueprintQuery
from esper.services.clients import UrzaClient
from esper.services.urza.database import engine_at, prepare
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, request_for
from esper.testing.postgres import PostgresServer
from esper.testing.store_process import StoreProcess

READS_PER_S, SEARCHES_PER_S, RSS_MB, OVER_MLFLOW = 5_000.0, 2_500.0, 300.0, 20.0
CONNECTIONS = 16
DESIGNS = 64
_HEAD_END = b"\r\n\r\n"


def answer(*, quick: bool, seed: int) -> Answer:
    """Fill a library, serve it from one process, and ask it from another over connections that are kept."""
    kernels, requests, models = (10_000, 2_000, 20) if quick else (100_000, 40_000, 200)
    result = Answer(
        method=f"one worker on PostgreSQL with {kernels:,} kernels, beside its caller; {CONNECTIONS} connections, "
        f"each with one request at a time, {requests:,} requests of each kind; percentiles of the time from sending to "
        f"the last byte; beside it, one at a time, {models} models registered, tagged, searched and fetched: MLflow in process, "
        f"this store in process and over HTTP, all on SQLite, each commit synced before it is answered"
    )
    with PostgresServer(SETTINGS) as server, TemporaryDirectory() as folder:
        url = server.url(server.new_database())
        asyncio.run(_prepared(url))
        fill(server, url.rpartition("/")[2], kernels, kernels // 10)
        asyncio.run(_measured(result, Path(folder), url, requests, seed))
    with TemporaryDirectory() as folder:
        asyncio.run(_beside_mlflow(result, Path(folder), models))
    metrics = result.metrics
    result.targets += [
        Target("immutable_warm_per_s", ">=", READS_PER_S, metrics["immutable_warm_per_s"]),
        Target("search_per_s", ">=", SEARCHES_PER_S, metrics["search_per_s"]),
        Target("rss_mb", "<=", RSS_MB, metrics["rss_mb"]),
        Target("jobs_over_mlflow", ">=", OVER_MLFLOW, result.ratios["jobs_over_mlflow"]),
    ]
    return result


async def _prepared(url: str) -> None:
    engine = engine_at(url)
    await prepare(engine)
    await engine.dispose()


async def _measured(result: Answer, folder: Path, url: str, requests: int, seed: int) -> None:
    with _served(folder, url) as service:
        port = service.port
        async with UrzaClient(service.url) as client:
            for width in range(1, DESIGNS + 1):
                await client.submit(request_for(adapter(width)))
        designs = [f"/api/v1/blueprints/{adapter(width).digest}/ir" for width in range(1, DESIGNS + 1)]
        searches = [
            "/api/v1/kernels/search?" + urlencode(query.model_dump(mode="json", exclude_none=True), doseq=True)
            for _, query in questions(seed, 600)
        ]
        _tell(result, "immutable_cold", await _load(port, designs, DESIGNS))
        _tell(result, "immutable_warm", await _load(port, designs, requests))
        await _load(port, searches, len(searches))  # brings pages into memory
        _tell(result, "search", await _load(port, searches, requests))
        result.metrics["rss_mb"] = _rss_mb(service.pid)


def _served(folder: Path, url: str | None) -> StoreProcess:
    """Return the service, a process of its own within the block."""
    settings = {"ESPER_URZA_REQUESTS_PER_S": "0"} | ({} if url is None else {"ESPER_URZA_DATABASE_URL": url})
    return StoreProcess(folder, settings=settings)


async def _load(port: int, paths: Sequence[str], requests: int) -> tuple[float, list[float]]:
    """Send requests over kept connections; return the rate and every time in milliseconds, in rising order."""
    times: list[float] = []
    waiting = iter([paths[number % len(paths)] for number in range(requests)])

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for path in waiting:
            began = perf_counter()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = (await reader.readuntil(_HEAD_END)).lower()
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(f"{path}: {head[:200]!r}")
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
            times.append((perf_counter() - began) * 1e3)
        writer.close()

    began = perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(CONNECTIONS):
            callers.create_task(caller())
    return requests / (perf_counter() - began), sorted(times)


def _tell(result: Answer, name: str, found: tuple[float, list[float]]) -> None:
    rate, times = found
    result.metrics[f"{name}_per_s"] = rate
    for share in (50, 99):
        result.metrics[f"{name}_p{share}_ms"] = times[min(len(times) - 1, len(times) * share // 100)]


def _rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


# -- the same job --------------------------------------------------------------------------------------------------------


async def _beside_mlflow(result: Answer, folder: Path, models: int) -> None:
    """Register, tag, search by tag and fetch, for each of many models."""
    async with await KernelManager.open(folder / "in-process") as manager:
        result.metrics["jobs_per_s"] = await _jobs_here(manager, models)
    with _served(folder, None) as service:
        async with UrzaClient(service.url) as client:
            result.metrics["jobs_over_http_per_s"] = await _jobs_here(client, models)
    result.baselines["mlflow_jobs_per_s"] = await asyncio.to_thread(_jobs_in_mlflow, folder, models)
    there = result.baselines["mlflow_jobs_per_s"]
    result.ratios["jobs_over_mlflow"] = result.metrics["jobs_per_s"] / there
    result.ratios["jobs_over_http_over_mlflow_in_process"] = result.metrics["jobs_over_http_per_s"] / there


async def _jobs_here(store: UrzaClient | KernelManager, models: int) -> float:
    await store.search_blueprints(BlueprintQuery())  # as there: the first call makes what later ones find made
    began = perf_counter()
    for number in range(models):
        await _job_here(store, number)
    return models / (perf_counter() - began)


async def _job_here(client: UrzaClient | KernelManager, number: int) -> None:
    submitted = await client.submit(request_for(adapter(1 + number), tags=(f"tag{number}",)))
    page = await client.search_blueprints(BlueprintQuery(tags=[f"tag{number}"]))
    found = await client.get_blueprint(page.blueprints[0].blueprint_id)
    if found.blueprint_id != submitted.blueprint_id:
        raise RuntimeError("another blueprint was found")


def _jobs_in_mlflow(folder: Path, models: int) -> float:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        logging.disable(logging.WARNING)
        store = f"sqlite:///{folder / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=store, registry_uri=store)
        client.search_registered_models()  # makes the tables
        began = perf_counter()
        for number in range(models):
            _job_there(client, number)
        took = perf_counter() - began
        logging.disable(logging.NOTSET)
    return models / took


def _job_there(client: object, number: int) -> None:
    name, ask = f"model{number}", client
    ask.create_registered_model(name)  # type: ignore[attr-defined]
    version = ask.create_model_version(name, source="/nowhere/model")  # type: ignore[attr-defined]
    ask.set_model_version_tag(name, version.version, f"tag{number}", "yes")  # type: ignore[attr-defined]
    found = ask.search_model_versions(f"tags.tag{number} = 'yes'")  # type: ignore[attr-defined]
    if ask.get_model_version(found[0].name, found[0].version).name != name:  # type: ignore[attr-defined]
        raise RuntimeError("another model was found")
