"""Hundreds of strangers at once, over HTTP, while others want something sound: nothing falls over, and nobody waits for ever."""

import asyncio
import io
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest

from benchmarks.support.siege import drawn
from esper.contracts.kernel import BuildSpec
from esper.contracts.problems import MEDIA_TYPE
from esper.errors import EsperError, Rejected
from esper.ir import BlueprintIR, digest_of
from esper.services.clients import UrzaClient
from esper.services.clients.messages import TransportConfig
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.testing import faults
from esper.testing.faults import Fault, faulty
from esper.testing.forging import adapter, request_for
from esper.testing.server import free_port
from tests.integration.running import answering, executed, forge, found, process, running_store, status_of

HOSTILE, SOUND = 400, 24
DEADLY = (Fault.HANG, Fault.SEGFAULT, Fault.KILL, Fault.MEMORY, Fault.RAISE, Fault.WRONG)
ANSWER_LIMIT_S, DONE_LIMIT_S = 60.0, 300.0
"""Not what it should take, but what hangs: a busy machine runs test beside test."""
PATIENT = TransportConfig(try_s=ANSWER_LIMIT_S, deadline_s=DONE_LIMIT_S)
RATES = {
    "ESPER_URZA_REQUESTS_PER_S": "20",
    "ESPER_URZA_BURST": "120",
    "ESPER_URZA_BODY_LIMIT_S": "2",
    "ESPER_TEZZERET_REQUESTS_PER_S": "10",
    "ESPER_TEZZERET_BURST": "60",
}
STRANGERS_PRIORITY, TRAINING_PRIORITY = 3, 8

Answers: TypeAlias = Counter[tuple[int, str]]
Attack: TypeAlias = Callable[["Caller"], Coroutine[Any, Any, object]]


class Caller:
    """Somebody who calls a service with one key, and notes every answer.

    Args:
        session: To the service, with the key.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self.answers: Answers = Counter()
        self.accepted: list[str] = []

    async def post(self, path: str, body: Any, **headers: str) -> int:
        """Send a body; an answer is what was asked for, or a problem as RFC 9457 has it."""
        sent = {"Content-Type": "application/json", **headers}
        data = io.BytesIO(body) if isinstance(body, bytes) else body
        async with asyncio.timeout(ANSWER_LIMIT_S), self._session.post(path, data=data, headers=sent) as answer:
            told = await answer.json(content_type=None)
            assert answer.status == 200 or answer.content_type == MEDIA_TYPE, (answer.status, told)
            self.answers[answer.status, told.get("code", "")] += 1
            if answer.status == 200 and "blueprint_id" in told:
                self.accepted.append(told["blueprint_id"])
            return answer.status

    async def insist(self, path: str, body: bytes) -> None:
        """Send it again until there was time for it."""
        while await self.post(path, body) == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.5)


def submission(source: object) -> bytes:
    """Return the body that submits whatever it is; text and bytes stand in it as they are."""
    fields = {"name": "strange", "priority": STRANGERS_PRIORITY, "architecture_ir": "HERE"}
    head, tail = json.dumps(fields).encode().split(b'"HERE"')
    if isinstance(source, str):
        source = source.encode("utf-8", "surrogatepass")
    return head + (source if isinstance(source, bytes) else json.dumps(source).encode()) + tail


async def stalling() -> AsyncIterator[bytes]:
    """Begin a body, and never end it."""
    yield b'{"name":'
    await asyncio.sleep(ANSWER_LIMIT_S)


def attacks() -> list[Attack]:
    """Return what strangers do to the store."""

    def sends(body: Callable[[], Any], **headers: str) -> Attack:
        return lambda caller: caller.post("/api/v1/blueprints", body(), **headers)

    def insists(ir: BlueprintIR) -> Attack:
        return lambda caller: caller.insist("/api/v1/blueprints", submission(ir.to_json()))

    strange = [sends(lambda source=one.source: submission(source)) for one in drawn(HOSTILE, 20)]
    deadly = [insists(faulty(fault)) for fault in DEADLY]
    long = [sends(lambda: b"[" * 3_000_000), sends(lambda: b'{"name": "' + b"x" * 3_000_000)]
    packed = [sends(lambda: b"\x1f\x8b", **{"Content-Encoding": "gzip"})]
    slow = [sends(stalling)]
    return [*deadly, *4 * [*long, *packed, *slow], *strange]


def runs(kernel_id: str) -> list[Attack]:
    """Return what strangers ask the forge to run."""
    shapes: tuple[Any, ...] = (
        [3, 9],
        [10**7, 8],
        [0, 8],
        [-1, 8],
        [2**70, 8],
        [],
        [1] * 1000,
        "8",
        None,
        [[3, 8]],
        [1.5, 8],
    )
    contexts: tuple[Any, ...] = (
        {"backend": "onnx"},
        {"backend": "../../etc"},
        {"seed": -1},
        {"more": 1},
        [],
        "x" * 10_000,
    )
    kernels: tuple[Any, ...] = ("sha256:" + "0" * 64, "", "../../etc/passwd", 7, None, "x" * 100_000)
    good = {"kernel_id": kernel_id, "input_tensor_shape": [3, 8]}
    asked = [
        good,
        *({**good, "input_tensor_shape": shape} for shape in shapes),
        *({**good, "execution_context": context} for context in contexts),
        *({**good, "kernel_id": kernel} for kernel in kernels),
    ]
    bodies = [json.dumps(one).encode() for one in asked] + [b"", b"[", b"[" * 100_000, b"x" * 3_000_000]
    return [lambda caller, body=body: caller.post("/api/v1/kernels/execute", body) for body in 8 * bodies]


async def submitted(store: UrzaClient, ir: BlueprintIR) -> None:
    await store.submit(request_for(ir, priority=TRAINING_PRIORITY, build=BuildSpec()))


async def ended(store: UrzaClient, blueprint_id: str) -> str:
    """Wait for the end of a stranger's build."""
    try:
        await found(store, blueprint_id, limit_s=DONE_LIMIT_S)
    except Rejected as refused:
        return refused.code
    return "compiled"


@pytest.mark.slow
@pytest.mark.timeout(560)
async def test_a_flood_of_strangers_takes_nothing_down_and_sound_designs_are_built(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path / "library") as library:
        keys = {
            name: (await ApiKeys(library.database).create(name, ["write"]))[0]
            for name in ("forge", "training", "strangers")
        }
    own = {
        "ESPER_TEZZERET_URZA_KEY": keys["forge"],
        "ESPER_TEZZERET_EXTENSIONS": json.dumps([faults.__name__]),
        "ESPER_TEZZERET_FORK_PER_JOB": "true",
        "ESPER_TEZZERET_DEADLINE_S": "10",
        "ESPER_TEZZERET_MEMORY_LIMIT_MB": "512",
        "ESPER_TEZZERET_OPTIMIZATION_LEVEL": "O0",
    }
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    sound = [adapter(width) for width in range(1, SOUND + 1)]
    strangers = {"Authorization": f"Bearer {keys['strangers']}"}
    async with (
        running_store(
            tmp_path,
            key=keys["training"],
            extension=faults.__name__,
            limits=PATIENT,
            ESPER_URZA_REQUIRE_KEYS="true",
            **RATES,
        ) as store,
        aiohttp.ClientSession(store.address, headers=strangers, connector=aiohttp.TCPConnector(limit=0)) as to_store,
        aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(limit=0)) as to_forge,
    ):
        with process(*forge(store, port), folder=tmp_path, **RATES, **own) as forging:
            await submitted(store.client, sound[0])
            first = await found(store.client, sound[0].digest)
            at_store, at_forge = Caller(to_store), Caller(to_forge)
            async with asyncio.TaskGroup() as everybody:
                for attack in attacks():
                    everybody.create_task(attack(at_store))
                for attack in runs(first.kernel_id):
                    everybody.create_task(attack(at_forge))
                for ir in sound[1:]:
                    everybody.create_task(submitted(store.client, ir))
            built = [await found(store.client, ir.digest, limit_s=DONE_LIMIT_S) for ir in sound]
            for kernel in built:
                assert digest_of(await store.client.read(kernel.kernel_id)) == kernel.kernel_id
            ends = {blueprint_id: await ended(store.client, blueprint_id) for blueprint_id in at_store.accepted}
            assert {ends[faulty(fault).digest] for fault in DEADLY} == {"ESP-7200"}
            everything = at_store.answers + at_forge.answers
            assert everything[429, "ESP-4720"]
            assert {status for status, _ in at_store.answers} | {429} == {200, 400, 408, 413, 415, 422, 429}
            assert {status for status, _ in at_forge.answers} <= {200, 400, 404, 413, 422, 429}
            assert EsperError.default_code not in {code for _, code in everything}
            assert (await executed(to_forge, first.kernel_id, "kernel", [3, 8]))["status"] == 200
            assert (await status_of(to_forge))["in_hand"] == 0
            await answering(f"{store.address}/health")
            forging.send_signal(signal.SIGTERM)
            assert forging.wait(60) == 0
        store.process.send_signal(signal.SIGTERM)
        assert store.process.wait(60) == 0
