"""Designs are submitted and kernels searched, as specified."""

import json

import pytest

from esper.contracts.store import KernelQuery
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
