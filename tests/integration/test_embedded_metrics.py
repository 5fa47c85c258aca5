"""The services of one process give what their bus is measured by beside what they counted."""

import asyncio
from pathlib import Path

from prometheus_client import generate_latest

from esper.assembly import embedded
from esper.contracts.events import CompilationEvent
from esper.contracts.topics import COMPILATIONS
from esper.services.tamiyo.plateau import PlateauAdvisor


async def test_the_services_of_one_process_measure_their_bus(tmp_path: Path) -> None:
    async with embedded(tmp_path, PlateauAdvisor()) as services:
        await services.bus.publish(COMPILATIONS.stream, CompilationEvent(blueprint_id="sha256:0", status="started"))
        async with asyncio.timeout(10):
            while services.counts()["compilations"] != {"started": 1}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        shown = generate_latest(services.metrics.registry).decode()
    assert f'esper_oona_publish_seconds_count{{bus="local",stream="{COMPILATIONS.stream}"}} 1.0' in shown
    assert (
        f'esper_oona_depth_messages{{bus="local",group="nissa-counters",stream="{COMPILATIONS.stream}"}} 0.0' in shown
    )
    assert 'esper_tezzeret_compilations_total{status="started"} 1.0' in shown
