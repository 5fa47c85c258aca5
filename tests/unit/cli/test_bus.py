"""``esper bus``, from the shell."""

import json
import subprocess
import sys

from esper.contracts.topics import TOPICS


def bus(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "esper.cli", "bus", *arguments],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def test_the_topics_are_listed_for_people() -> None:
    head, *lines = bus("topics").splitlines()
    assert head.split() == ["STREAM", "MESSAGE", "WRITERS", "READERS", "RETENTION"]
    assert [line.split()[0] for line in lines] == list(TOPICS)


def test_the_topics_are_listed_for_programs() -> None:
    (health, *_) = found = json.loads(bus("topics", "--json"))["topics"]
    assert [topic["stream"] for topic in found] == list(TOPICS)
    assert health == {
        "stream": "telemetry.seed.health", "model": "HealthBatch", "version": 1, "writers": ["tolaria"],
        "readers": ["tamiyo", "nissa"], "max_length": 10_000, "lossy": True, "durable": False,
    }  # fmt: skip
