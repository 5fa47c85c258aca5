"""Names, paths and words that lead nowhere else."""

from pathlib import Path

from sqlalchemy import func, select
from yarl import URL

from esper.services.urza.models import Blueprint, Kernel
from esper.testing.forging import adapter, artifact_of, request_for, verdict_on
from tests.integration.urza.strangers import ZERO, Target

TRICKS = (
    "/abs", "..", "../..", "%2e%2e", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%5c..%5cwin.ini", "sha256:%2e%2e/%2e%2e/etc/passwd",
    "sha256:" + "0" * 63, "sha256:" + "G" * 64, "SHA256:" + "0" * 64, ZERO + "%00", ZERO + "%0a", "%ef%bc%8e%ef%bc%8e",
    "%c0%ae%c0%ae", "file:%2f%2f%2fetc%2fpasswd", "http:%2f%2f169.254.169.254%2f", "%E2%80%AE", "%ff%fe", "x" * 4000,
    "sha256:%D9%A0" + "0" * 63,
)  # fmt: skip


async def test_no_name_leads_out_of_the_library(store: Target, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"not yours")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    for trick in TRICKS:
        for method, path in (
            ("GET", f"/api/v1/kernels/{trick}/bytes"), ("GET", f"/api/v1/kernels/{trick}"), ("PUT", f"/api/v1/blobs/{trick}"),
            ("GET", f"/api/v1/blueprints/{trick}/ir"), ("GET", f"/{trick}"), ("GET", f"/api/v1/kernels/{trick}/link"),
            ("GET", f"/api/v1/kernels/{trick}/forms"), ("GET", f"/api/v1/kernels/{ZERO}/forms/{trick}"),
        ):  # fmt: skip
            status, body, _ = await store.ask(method, path, data=b"payload" if method == "PUT" else None)
            assert 400 <= status < 500, (method, path, status)
            assert "not yours" not in str(body)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} - before == set()


SQL = ("'", '"', "';--", "' OR '1'='1", "1; DROP TABLE kernels;--", "%", "_", "\\", "%' ESCAPE '", "NULL", "${jndi:x}", "\u2019",
       "a\u0000b", "{{7*7}}", "/*", "0x27", "' UNION SELECT key_hash FROM api_keys --")  # fmt: skip


async def test_words_of_sql_are_words_everywhere(store: Target) -> None:
    await store.manager.submit(request_for(adapter(), tags=("plain",)))
    job = await store.manager.claim("w", lease_s=60)
    assert job is not None
    artifact = artifact_of(job.blueprint_id, b"bytes")
    await store.manager.complete(job.job_id, "w", artifact, verdict_on(artifact))
    fields = ("tags", "name", "device", "cursor", "status", "match", "blueprint_id")
    for word in SQL:
        for path in ("/api/v1/kernels/search", "/api/v1/kernels", "/api/v1/blueprints"):
            for field in fields:
                url = URL(store.address + path).with_query({field: word})
                async with store.raw.get(url, headers={"Authorization": f"Bearer {store.keys['read']}"}) as answer:
                    body = await answer.json(content_type=None)
                    assert answer.status < 500, (path, field, word)
                    assert "key_hash" not in str(body).replace(word, "")
                    if answer.status == 200 and field in ("tags", "device"):
                        assert body == [] or path == "/api/v1/blueprints", (path, field, word)
        submission = {
            **request_for(adapter(2)).model_dump(mode="json"),
            "name": f"x{word}",
            "tags": [word],
            "submitted_by": word,
        }
        assert (await store.ask("POST", "/api/v1/blueprints", json=submission))[0] < 500
        for path, body in (
            ("/api/v1/jobs/claim", {"worker": word, "lease_s": 1}), ("/api/v1/jobs/job-1/release", {"worker": word}),
            ("/api/v1/jobs/job-1/fail", {"worker": "w", "reason": word, "retry": True}),
        ):  # fmt: skip
            assert (await store.ask("POST", path, json=body))[0] < 500
        assert (await store.ask("GET", URL("/api/v1/audit").with_query({"subject": word}).raw_path_qs))[0] < 500
    async with store.manager.database.reading() as session:
        assert await session.scalar(select(func.count()).select_from(Kernel)) == 1
        assert await session.scalar(select(func.count()).select_from(Blueprint)) >= 1
