"""What has a content address: it never changes, goes both ways in pieces, and is never there under a wrong address."""

import json
import os
from pathlib import Path

import pytest

from esper.contracts.kernel import BlueprintContract, BuildSpec, KernelStatus
from esper.contracts.store_calls import ArtifactHead
from esper.errors import Conflict, IllegalTransition, KernelRejected, NotFound, StoreUnavailable
from esper.ir import digest_of
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from tests.integration.urza.service import ZERO, Service


async def test_bytes_and_designs_never_change_and_say_so(service: Service) -> None:
    kernel_id = await service.kernel()
    for path, address in (
        (f"/api/v1/kernels/{kernel_id}/bytes", kernel_id),
        (f"/api/v1/blueprints/{adapter().digest}/ir", adapter().digest),
    ):
        for _ in range(2):  # from the store, then from memory
            async with service.raw.get(service.address + path) as answer:
                assert digest_of(await answer.read()) == address
                assert answer.headers["ETag"] == f'"{address}"'
                assert "immutable" in answer.headers["Cache-Control"]
        tags = f'"else", W/"{address}"'
        async with service.raw.get(service.address + path, headers={"If-None-Match": tags}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")


async def test_whoever_names_the_digest_is_told_that_nothing_changed_before_anything_is_read(service: Service) -> None:
    path = f"/api/v1/blueprints/{ZERO}/ir"
    status, _, _ = await service.ask("GET", path, headers={"If-None-Match": f'"{ZERO}"'})
    assert status == 304
    for headers in ({}, {"If-None-Match": "*"}, {"If-None-Match": '"else"'}):
        status, problem, _ = await service.ask("GET", path, headers=headers)
        assert (status, problem["code"]) == (404, "ESP-5000")
    for address in ("sha256:0", ZERO + "0", ZERO.upper(), ZERO + "%0A"):
        status, problem, _ = await service.ask("GET", f"/api/v1/blueprints/{address}/ir")
        assert (status, "content address" in problem["detail"]) == (422, True)


async def test_a_record_that_may_change_has_a_tag_of_its_content(service: Service) -> None:
    path = f"/api/v1/kernels/{await service.kernel()}"
    _, _, headers = await service.ask("GET", path)
    tag = {"If-None-Match": headers["ETag"]}
    assert (await service.ask("GET", path, headers=tag))[0] == 304
    assert "no-cache" in headers["Cache-Control"]
    await service.ask("PUT", path + "/status", json={"status": "retired"})
    assert (await service.ask("GET", path, headers=tag))[0] == 200


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)), ("bytes=5-", 206, slice(5, None)), ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-99999", 206, slice(None)), ("bytes=9-5", 200, slice(None)), ("bytes=0-1,3-4", 200, slice(None)),
        ("lines=1-2", 200, slice(None)), ("bytes=99999-", 416, None), ("bytes=-0", 416, None),
    ],
)  # fmt: skip
async def test_a_part_of_the_bytes_can_be_read(service: Service, wanted: str, status: int, part: slice | None) -> None:
    kernel_id = await service.kernel()
    whole = await service.manager.read(kernel_id)
    async with service.raw.get(
        f"{service.address}/api/v1/kernels/{kernel_id}/bytes", headers={"Range": wanted}
    ) as answer:
        body = await answer.read()
        assert answer.status == status
        if part is not None:
            assert body == whole[part]


async def test_a_retired_kernel_is_handed_out_no_more_not_even_from_memory(service: Service) -> None:
    kernel_id = await service.kernel()
    assert await service.client.read(kernel_id)
    await service.client.set_kernel_status(kernel_id, KernelStatus.RETIRED)
    with pytest.raises(KernelRejected):
        await service.client.read(kernel_id)
    with pytest.raises(IllegalTransition):
        await service.client.set_kernel_status(kernel_id, KernelStatus.PENDING_VALIDATION)


async def test_bytes_are_streamed_into_a_file_that_is_whole_or_not_there(service: Service, tmp_path: Path) -> None:
    kernel_id = await service.kernel()
    target = tmp_path / "kernel.bin"
    size = await service.client.download(kernel_id, target)
    assert (digest_of(target.read_bytes()), size) == (kernel_id, target.stat().st_size)
    with pytest.raises(NotFound):
        await service.client.download(ZERO, tmp_path / "nothing.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"kernel.bin", "library"}


async def test_a_kernel_is_uploaded_and_opens_with_its_report_only(service: Service) -> None:
    await service.client.submit(request_for(adapter()))
    artifact = artifact_of(adapter().digest, os.urandom(700_000))
    kernel = await service.client.upload_kernel(artifact)
    assert kernel.status is KernelStatus.PENDING_VALIDATION
    assert (await service.client.upload_kernel(artifact)).created_at == kernel.created_at
    with pytest.raises(KernelRejected):
        await service.client.read(artifact.artifact_id)
    assert (await service.client.store_report(verdict_on(artifact))).status is KernelStatus.VALIDATED
    assert await service.client.read(artifact.artifact_id) == artifact.kernel_binary
    with pytest.raises(Conflict):
        await service.client.store_report(verdict_on(artifact))
    with pytest.raises(NotFound):
        await service.client.upload_kernel(artifact_of(ZERO, b"of nothing"))


async def test_bytes_are_refused_under_another_address(service: Service) -> None:
    status, problem, _ = await service.ask("PUT", f"/api/v1/blobs/{ZERO}", data=b"something else")
    assert (status, digest_of(b"something else")[:19] in problem["why"]) == (422, True)
    await service.client.submit(request_for(adapter()))
    head = ArtifactHead.of(artifact_of(adapter().digest, b"something else")).model_copy(update={"artifact_id": ZERO})
    assert (await service.ask("POST", "/api/v1/kernels", json=head.model_dump()))[0] == 404


async def test_bytes_of_any_length_go_both_ways_in_pieces(service: Service, tmp_path: Path) -> None:
    await service.client.submit(request_for(adapter()))
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3_000_001))
    stored = await service.client.upload_bytes(source)
    artifact = artifact_of(adapter().digest, source.read_bytes())
    await service.client.upload_kernel(artifact)
    await service.client.store_report(verdict_on(artifact))
    assert await service.client.download(stored.digest, target) == 3_000_001
    assert target.read_bytes() == source.read_bytes()
    wanted = {"Range": "bytes=1500000-2500000"}
    status, part, headers = await service.ask("GET", f"/api/v1/kernels/{stored.digest}/bytes", headers=wanted)
    assert (status, part) == (206, artifact.kernel_binary[1_500_000:2_500_001])
    assert headers["Content-Range"] == "bytes 1500000-2500000/3000001"
    assert (await service.ask("GET", f"/api/v1/kernels/{stored.digest}/link"))[1] == {"url": None}


async def test_damage_in_a_long_kernel_ends_the_download_and_leaves_no_file(service: Service, tmp_path: Path) -> None:
    await service.client.submit(request_for(adapter()))
    artifact = artifact_of(adapter().digest, os.urandom(3_000_000))
    await service.client.upload_kernel(artifact)
    await service.client.store_report(verdict_on(artifact))
    path = tmp_path / "library" / "blobs" / "sha256" / artifact.artifact_id[7:9] / artifact.artifact_id[7:]
    path.chmod(0o644)
    damaged = bytearray(artifact.kernel_binary)
    damaged[1_000_000] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StoreUnavailable):
        await service.client.download(artifact.artifact_id, tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_a_blueprint_is_put_under_its_own_address_with_its_parent(service: Service) -> None:
    parent, child = adapter(2), adapter(3)
    for ir, origin in ((parent, None), (child, parent.digest)):
        contract = BlueprintContract(blueprint_id="mine", name=ir.name, architecture_ir=ir.to_json(), tags=["x"])
        assert await service.client.store_blueprint(contract, origin) == ir.digest
    assert [entry.blueprint_id for entry in await service.client.get_ancestors(child.digest)] == [
        child.digest,
        parent.digest,
    ]
    assert [entry.depth for entry in await service.client.get_descendants(parent.digest)] == [0, 1]
    assert (
        digest_of(
            json.dumps(
                await service.client.get_architecture(child.digest), sort_keys=True, separators=(",", ":")
            ).encode()
        )
        == child.digest
    )
    body = {"blueprint": contract.model_dump(mode="json")}
    assert (await service.ask("PUT", f"/api/v1/blueprints/{ZERO}", json=body))[0] == 422


async def test_no_build_yet_is_no_content_and_a_refused_one_says_why(service: Service) -> None:
    await service.client.submit(request_for(adapter()))
    path = f"/api/v1/blueprints/{adapter().digest}/kernel"
    assert (await service.ask("GET", path))[0] == 204
    job = await service.client.claim("w", lease_s=10)
    assert job is not None
    await service.client.fail(job.job_id, "w", "no body for that", retry=False)
    with pytest.raises(KernelRejected, match="no body"):
        await service.client.find(adapter().digest, BuildSpec())
