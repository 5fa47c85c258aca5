"""The service as a process."""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from esper.cli.app import app
from esper.errors import ConfigError, NotFound, StoreUnavailable
from esper.ir import digest_of
from esper.services.clients import UrzaClient
from esper.services.clients.messages import TransportConfig
from esper.services.urza.kernel_manager import KernelManager, collector_of
from esper.testing.forging import adapter, request_for
from tests.integration.urza.process import listens, process


async def ended(running: "subprocess.Popen[bytes]") -> int:
    return await asyncio.to_thread(running.wait, 20)


async def status_of(port: int, path: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status


class Upload:
    """An upload that is in hand: its first half is sent."""

    def __init__(self, port: int) -> None:
        self.data, self._port = os.urandom(200_000), port

    async def begin(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"PUT /api/v1/blobs/{digest_of(self.data)} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(self.data)}\r\n\r\n"
        self._writer.write(head.encode() + self.data[:100_000])
        await self._writer.drain()

    async def end(self) -> bytes:
        self._writer.write(self.data[100_000:])
        return await self.answer()

    async def answer(self) -> bytes:
        async with asyncio.timeout(20):
            found = await self._reader.read()
        self._writer.close()
        return found


async def test_the_process_has_no_torch(tmp_path: Path) -> None:
    async with process(tmp_path) as (_, running, _log):
        maps = Path(f"/proc/{running.pid}/maps")
        if maps.exists():
            assert "libtorch" not in maps.read_text()


async def test_an_upload_in_hand_is_finished_new_callers_are_refused_and_the_end_is_good(tmp_path: Path) -> None:
    async with process(tmp_path) as (port, running, log):
        upload = Upload(port)
        await upload.begin()
        await asyncio.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while listens(port):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert running.poll() is None, "it waits for what is in hand"
        assert (await upload.end()).startswith(b"HTTP/1.1 200")
        assert await ended(running) == 0
        assert "Traceback" not in log.read_text()
    async with await KernelManager.open(tmp_path / "lib") as manager:
        assert await collector_of(manager)._blobs.get(digest_of(upload.data)) == upload.data


async def test_an_upload_that_stands_still_is_given_up_after_the_bound(tmp_path: Path) -> None:
    async with process(tmp_path, close_limit_s=1, stall_limit_s=60) as (port, running, _):
        upload = Upload(port)
        await upload.begin()
        await asyncio.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        assert not (await upload.answer()).startswith(b"HTTP/1.1 200")
        assert await ended(running) == 0
    async with await KernelManager.open(tmp_path / "lib") as manager:
        with pytest.raises(NotFound):
            await collector_of(manager)._blobs.get(digest_of(upload.data))


async def test_it_says_that_it_is_not_ready_before_it_refuses(tmp_path: Path) -> None:
    async with process(tmp_path, drain_s=2.0) as (port, running, _):
        assert await status_of(port, "/ready") == 200
        running.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert await status_of(port, "/ready") == 503
        async with UrzaClient(f"http://127.0.0.1:{port}") as client:
            await client.submit(request_for(adapter()))
        assert await ended(running) == 0


def certified(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for this machine that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "store")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(*plain))
    return folder / "cert.pem", folder / "key.pem"


async def test_it_speaks_https_to_those_who_trust_it_and_nothing_else(tmp_path: Path) -> None:
    certificate, key = certified(tmp_path)
    trust = ssl.create_default_context(cafile=certificate)
    async with process(tmp_path, "--tls-cert", str(certificate), "--tls-key", str(key)) as (port, running, _):
        async with UrzaClient(f"https://127.0.0.1:{port}", tls=trust) as client:
            answer = await client.submit(request_for(adapter()))
            assert (await client.get_blueprint(answer.blueprint_id)).name == "adapter"
        once = TransportConfig(tries=1)
        for stranger in (f"https://127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
            async with UrzaClient(stranger, config=once) as client:
                with pytest.raises(StoreUnavailable):
                    await client.get_blueprint(answer.blueprint_id)
        running.send_signal(signal.SIGTERM)
        assert await ended(running) == 0


def test_a_certificate_without_its_key_is_a_mistake(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "urza", "--root", str(tmp_path), "--tls-cert", "cert.pem"])
    assert isinstance(done.exception, ConfigError)


def test_importing_the_service_brings_no_torch(tmp_path: Path) -> None:
    code = "import esper.services.urza.main, esper.services.rest.server, esper.cli.serve, sys; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
