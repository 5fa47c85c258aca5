"""A forge that makes machine code: it is kept in the store with its seal, and run over HTTP by whoever trusts its key."""

import signal
from pathlib import Path

import aiohttp
import pytest

from esper.contracts.kernel import BuildSpec
from esper.services.tezzeret.scratch import no_compiler, no_scratch
from esper.testing.forging import adapter, request_for
from esper.testing.server import free_port
from tests.integration.running import answering, executed, forge, forms_of, found, process, running_store

O3 = BuildSpec(level="O3")
COMPILED_S = 400.0
"""A C++ compiler on a busy machine takes its time."""
SETTINGS = {
    "ESPER_TEZZERET_BACKEND": "aotinductor",
    "ESPER_TEZZERET_DEADLINE_S": str(COMPILED_S),
    "ESPER_TEZZERET_EXECUTION_LIMIT_S": "120",
}
LACKING = no_compiler() or no_scratch()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(LACKING), reason=LACKING)
async def test_machine_code_is_made_kept_and_run_where_its_key_is_trusted(tmp_path: Path) -> None:
    async with running_store(tmp_path) as store:
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        with process(*forge(store, port), folder=tmp_path, **SETTINGS) as maker:
            await store.client.submit(request_for(adapter(), build=O3))
            kernel_id = (await found(store.client, adapter().digest, O3)).kernel_id
            await forms_of(store.client, kernel_id, "O1", "O2", "O3", limit_s=COMPILED_S)
            async with aiohttp.ClientSession(address) as session:
                told = await executed(session, kernel_id, "aotinductor", [3, 8])
                assert (told["status"], told["output_tensor_shape"]) == (200, [3, 8]), told
                lacking = await executed(session, kernel_id, "torchscript", [3, 8])
                assert (lacking["status"], "aotinductor" in lacking["detail"]) == (404, True), lacking
            maker.send_signal(signal.SIGTERM)
            assert maker.wait(60) == 0
        (tmp_path / "forge").rename(tmp_path / "another")
        with process(*forge(store, port), folder=tmp_path):
            await answering(f"{address}/ready")
            async with aiohttp.ClientSession(address) as session:
                assert (await executed(session, kernel_id, "aotinductor", [3, 8]))["code"] == "ESP-7252"
                assert (await executed(session, kernel_id, "kernel", [3, 8]))["status"] == 200
