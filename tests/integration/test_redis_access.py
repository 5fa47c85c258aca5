"""The bus on a Redis that asks who is there, and on an encrypted one."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esper.errors import BusUnavailable, ConfigError
from esper.services.oona.redis_bus import RedisBus
from esper.services.oona.redis_config import RedisBusConfig
from esper.testing.bus_readers import STREAM, Reader, Reading
from esper.testing.server import free_port
from esper.testing.servers import RedisServer

RIGHTS = "-@all +@stream +@connection +@transaction +eval +scan +hget +hset +hdel +hincrby +time +info"
"""What docs/redis.md says that a user of the bus needs."""


@pytest.fixture
def password_file(tmp_path: Path, redis_server: RedisServer) -> Iterator[Path]:
    redis_server.ask(f"ACL SETUSER app on >secret ~* {RIGHTS}")
    path = tmp_path / "password"
    path.write_text("secret\n")
    yield path
    redis_server.ask("ACL DELUSER app")


def config(server: RedisServer, password_file: Path, user: str = "app") -> RedisBusConfig:
    return RedisBusConfig(
        url=f"redis://{user}@127.0.0.1:{server.port}", password_file=password_file, block_s=0.05, claim_idle_s=0.3
    )


async def test_a_user_with_few_rights_and_a_password_in_a_file_can_use_all_of_the_bus(
    redis_server: RedisServer, password_file: Path
) -> None:
    reader, undertaker = Reader(failures=3), Reader()
    async with (
        RedisBus(config(redis_server, password_file)) as bus,
        Reading(bus, reader),
        Reading(bus, undertaker, stream=f"{STREAM}.dead"),
    ):
        await bus.create_topic("made")
        assert "made" in await bus.streams()
        assert (await bus.health()).usable
        for n in range(2):
            await bus.publish(STREAM, {"n": n})
        await reader.wait_for(4)
        await undertaker.wait_for(1)
    assert reader.numbers == [0, 0, 0, 1]


async def test_a_wrong_password_a_missing_file_and_a_missing_right_are_told(
    redis_server: RedisServer, password_file: Path
) -> None:
    redis_server.ask("ACL SETUSER app -xadd")
    async with RedisBus(config(redis_server, password_file)) as bus:
        with pytest.raises(ConfigError, match=r"can't run this command.*the user's rights|xadd"):
            await bus.publish(STREAM, {"n": 1})
    password_file.write_text("wrong")
    with pytest.raises(ConfigError, match="does not let this user in") as told:
        async with RedisBus(config(redis_server, password_file)):
            pass
    assert "wrong" not in str(told.value).partition("WRONGPASS")[0]
    with pytest.raises(ConfigError, match="password_file"):
        RedisBus(config(redis_server, password_file.with_name("nothing")))
    assert "secret" not in repr(RedisBusConfig(url="redis://app:secret@localhost"))


def certified(folder: Path) -> tuple[Path, Path]:
    """Return key and certificate of a server that nobody else vouches for."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate))
    subprocess.run([*made, *names], check=True, capture_output=True)
    return key, certificate


@contextmanager
def encrypting(server: RedisServer) -> Iterator[None]:
    """Run a server; skip where it says itself that it was built without TLS."""
    try:
        server.start()
    except BusUnavailable as error:
        if "Failed finding TLS support" in error.why:
            pytest.skip("this server was built without TLS")
        raise
    try:
        yield
    finally:
        server.kill()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here to make a certificate")
async def test_an_encrypted_connection_is_verified(
    tmp_path: Path, redis_server: RedisServer, redis_program: str
) -> None:
    port, (key, certificate) = free_port(), certified(tmp_path)
    files = {"tls-cert-file": str(certificate), "tls-key-file": str(key), "tls-ca-cert-file": str(certificate)}
    options = {"tls-port": str(port), "tls-auth-clients": "no"} | files
    with encrypting(RedisServer(tmp_path, options, program=redis_program)):
        async with RedisBus(RedisBusConfig(url=f"rediss://localhost:{port}?ssl_ca_certs={certificate}")) as bus:
            assert await bus.publish(STREAM, {"n": 1})
        with pytest.raises(BusUnavailable, match="certificate"):
            async with RedisBus(RedisBusConfig(url=f"rediss://localhost:{port}")):
                pass
