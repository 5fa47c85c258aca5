"""``esper blueprint`` and ``esper kernel``: from a file to a verified kernel, in a folder and over HTTP."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from esper.cli.app import app
from esper.contracts.kernel import BuildSpec
from esper.errors import ConfigError, Conflict, NotFound
from esper.services.tezzeret.compiler import KernelCompiler
from esper.services.tezzeret.validator import KernelValidator
from esper.services.urza.blobs import LocalBlobs
from esper.services.urza.kernel_manager import KernelManager
from esper.testing.forging import adapter, request_for
from esper.testing.store_server import served


def esper(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


async def opened(root: Path) -> KernelManager:
    """Open the library that the commands open in that folder."""
    root.mkdir(exist_ok=True)
    return await KernelManager.at(f"sqlite:///{root / 'library.db'}", LocalBlobs(root / "blobs"))


async def forged(root: Path) -> str:
    """Do the forge's work in this process: build what waits."""
    async with await opened(root) as library:
        job = await library.claim("w", lease_s=60.0)
        assert job is not None
        ir = adapter()
        artifact = KernelCompiler().compile(ir, BuildSpec())
        kernel = await library.complete(job.job_id, "w", artifact, KernelValidator().validate(artifact, ir))
    return kernel.kernel_id


def written(folder: Path, **changed: object) -> Path:
    file = folder / "design.json"
    file.write_text(json.dumps({**adapter().to_json(), **changed}))
    return file


def test_a_sound_file_is_submitted_built_shown_compared_verified_and_written(tmp_path: Path) -> None:
    file, root = written(tmp_path), tmp_path / "library"
    sent = json.loads(esper("blueprint", "submit", file, "--tag", "mine", "--root", root, "--json").stdout)
    assert (sent["blueprint_id"], sent["status"], sent["queue_position"]) == (adapter().digest, "queued", 1)
    assert "linear2 *" in esper("blueprint", "show", adapter().digest, "--root", root).stdout
    kernel_id = asyncio.run(forged(root))
    (listed,) = json.loads(esper("kernel", "list", "--tag", "mine", "--root", root, "--json").stdout)["kernels"]
    assert (listed["kernel_id"], listed["status"]) == (kernel_id, "validated")
    assert "correctness: passed" in esper("kernel", "show", kernel_id, "--root", root).stdout
    told = json.loads(esper("kernel", "compare", kernel_id, kernel_id, "--root", root, "--json").stdout)
    assert told["metrics"]["params"][0] == told["metrics"]["params"][1] > 0
    assert "every gate let it pass" in esper("kernel", "verify", kernel_id, "--root", root).stdout
    out = tmp_path / "kernel.safetensors"
    assert esper("kernel", "export", kernel_id, "-o", out, "--root", root).exit_code == 0
    assert out.read_bytes() == KernelCompiler().compile(adapter(), BuildSpec()).kernel_binary
    again = esper("kernel", "export", kernel_id, "-o", out, "--root", root)
    assert isinstance(again.exception, ConfigError)


def test_a_build_that_waits_is_withdrawn_and_can_be_asked_for_again(tmp_path: Path) -> None:
    file, root = written(tmp_path), tmp_path / "library"
    esper("blueprint", "submit", file, "--root", root)
    told = json.loads(esper("blueprint", "withdraw", adapter().digest, "--root", root, "--json").stdout)
    assert (told["status"], told["build"]["level"]) == ("withdrawn", "O0")
    assert isinstance(esper("blueprint", "withdraw", adapter().digest, "--root", root).exception, Conflict)
    other = esper("blueprint", "withdraw", adapter().digest, "--level", "O1", "--root", root)
    assert isinstance(other.exception, NotFound)
    for wrong in (("--level", "O9"), ("--dtype", "int8")):
        refused = esper("blueprint", "withdraw", adapter().digest, *wrong, "--root", root)
        assert isinstance(refused.exception, ConfigError)
    again = json.loads(esper("blueprint", "submit", file, "--root", root, "--json").stdout)
    assert (again["status"], again["queue_position"]) == ("queued", 1)


async def test_a_store_is_asked_over_http_too(tmp_path: Path) -> None:
    file = written(tmp_path)
    async with await opened(tmp_path / "library") as library, served(library) as address:
        sent = await asyncio.to_thread(esper, "blueprint", "submit", file, "--urza", address)
        assert "place 1 in the queue, nothing was measured yet" in sent.stdout
        shown = await asyncio.to_thread(esper, "blueprint", "show", adapter().digest, "--urza", address, "--json")
        assert json.loads(shown.stdout)["name"] == "adapter"
        missing = await asyncio.to_thread(esper, "kernel", "show", "sha256:" + "0" * 64, "--urza", address)
        assert isinstance(missing.exception, NotFound)
        await library.submit(request_for(adapter(2)))


def test_a_faulty_file_is_shown_with_carets_and_never_sent(tmp_path: Path) -> None:
    file, root = written(tmp_path, layout="featurs", output="linear3"), tmp_path / "library"
    told = esper("blueprint", "lint", file)
    assert told.exit_code == 4
    assert f"{file}:1:" in told.stdout
    assert "^^^" in told.stdout
    assert "Did you mean 'features'?" in told.stdout
    found = json.loads(esper("blueprint", "lint", file, "--json").stdout)
    assert (found["sound"], found["digest"], found["findings"][0]["line"]) == (False, None, 1)
    assert esper("blueprint", "submit", file, "--root", root).exit_code == 4
    assert not root.exists()
    assert json.loads(esper("blueprint", "lint", written(tmp_path), "--json").stdout)["digest"] == adapter().digest


def test_a_file_is_built_and_measured_with_no_store(tmp_path: Path) -> None:
    told = json.loads(esper("blueprint", "bench", written(tmp_path), "--json").stdout)
    assert told["passed"]
    assert told["kernel_id"] == KernelCompiler().compile(adapter(), BuildSpec()).artifact_id
    assert told["metrics"]["latency_p50_ms"] > 0
    assert told["metrics"]["error_float64"] < 1e-9


@pytest.mark.parametrize(
    "arguments", [("--urza", "http://localhost:1", "--root", "x"), ("--key-file", "x"), ("--status", "fast")]
)
def test_what_cannot_be_meant_is_a_mistake_of_usage(arguments: tuple[str, ...]) -> None:
    assert isinstance(esper("kernel", "list", *arguments).exception, ConfigError)
