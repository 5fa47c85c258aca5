"""Designs are submitted and kernels searched, as specified."""

import json

import pytest

from esper.contracts.store import KernelQuery
from esper.contracts.store_calls import KernelSummary
from esper.testing.forging import adapter
from tests.integration.urza.service import Service


async def test_a_blueprint_is_submitted_as_specified_also_as_a_string(service: Service) -> None:
    body = {"name": "AttentionKernel", "architecture_ir": json.dumps(adapter().to_json()), "tags": ["attention"]}
    status, answer, _ = await service.ask("POST", "/api/v1/blueprints", json=body)
    assert (status, answer["blueprint_id"], answer["status"]) == (200, adapter().digest, "queued")
    assert answer["queue_position"] == 1


async def test_a_search_answers_the_specified_array_and_leads_to_the_next_page(service: Service) -> None:
    ids = [await service.kernel(width, throughput=10.0 * width, tags=("mine",)) for width in (1, 2, 3)]
    ids.append(await service.kernel(4, tags=("mine",)))
    status, first, headers = await service.ask("GET", "/api/v1/kernels/search?tags=mine&tags=other&limit=3")
    assert status == 200
    assert [kernel["kernel_id"] for kernel in first] == [ids[2], ids[1], ids[0]]
    assert set(first[0]) == {"kernel_id", "blueprint_id", "tags", "performance", "device"}
    link = headers["Link"]
    status, rest, headers = await service.ask("GET", link.partition(">")[0].removeprefix("<"))
    assert [(kernel["kernel_id"], kernel["performance"]) for kernel in rest] == [(ids[3], None)]
    assert "Link" not in headers


async def test_a_summary_says_what_the_record_says(service: Service) -> None:
    await service.kernel(1, throughput=0.0, tags=('a "quoted" tag', "größe", "a"))
    await service.kernel(2, throughput=1e-300)
    await service.kernel(3)
    _, summaries, _ = await service.ask("GET", "/api/v1/kernels/search")
    records = (await service.client.search(KernelQuery())).kernels
    assert len(records) == 3
    assert [KernelSummary.model_validate(summary) for summary in summaries] == [
        KernelSummary(
            kernel_id=record.kernel_id, blueprint_id=record.blueprint_id, tags=record.tags,
            performance=record.throughput, device=record.target_device,
        )
        for record in records
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "kernels"),
    [
        ("tags=a&tags=b&match=all", 1), ("tags=a&limit=1&limit=2", 2), ("tags=a+c", 1), ("tags=a%20c&has_params=", None),
        ("min_performance=1.5e0", 3), ("device=", 0), ("", 3), ("&&", 3), ("tags=%FF", 0), ("has_params=true", 0),
        ("tags[]=a", None), ("max_memory_mb=1.5e308", 3),
    ],
)  # fmt: skip
async def test_a_query_is_read_as_forms_are(service: Service, query: str, kernels: int | None) -> None:
    for width, tags in ((1, ("a", "b")), (2, ("a",)), (3, ("a c",))):
        await service.kernel(width, throughput=2.0, tags=tags)
    for path in ("/api/v1/kernels/search", "/api/v1/kernels"):  # without the framework, and by it
        status, found, _ = await service.ask("GET", f"{path}?{query}")
        assert (status, len(found) if status == 200 else None) == (422 if kernels is None else 200, kernels), path


@pytest.mark.parametrize(
    "query", ["status=nonsense", "min_performance=nan", "limit=0", "limit=100000", "unknown=1", "cursor=x"]
)
async def test_a_query_that_cannot_be_used_is_refused_and_says_where(service: Service, query: str) -> None:
    status, problem, headers = await service.ask("GET", f"/api/v1/kernels/search?{query}")
    assert (status, headers["Content-Type"]) == (422, "application/problem+json")
    assert query.partition("=")[0] in problem["detail"]
    assert problem["code"].startswith("ESP-3")


async def test_the_client_finds_what_a_name_a_device_and_a_page_ask_for(service: Service) -> None:
    ids = {await service.kernel(width, throughput=float(width), tags=("a",)) for width in (1, 2, 3, 4)}
    found, cursor = set(), None
    for _ in range(4):
        page = await service.client.search(KernelQuery(tags=["a"], has_params=None, limit=1, cursor=cursor))
        found |= {kernel.kernel_id for kernel in page.kernels}
        cursor = page.cursor
    assert (found, cursor) == (ids, None)
    summaries = await service.client.search_kernels(tags=["a"], status="validated", min_performance=3.0)
    assert [summary.performance for summary in summaries] == [4.0, 3.0]
