"""What the image of the store is made of is there and is let through to the builder; it runs as nobody in particular."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
STAGES = (ROOT / "containers" / "urza.Dockerfile").read_text(encoding="utf-8").split("\nFROM ")[1:]


def test_everything_that_is_copied_exists_and_is_not_ignored() -> None:
    passed = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"}
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", STAGES[0], re.M) for name in line.split()}
    assert copied == passed
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_has_the_lock_without_torch_and_no_tools_of_the_build() -> None:
    assert "-r requirements-urza.lock" in STAGES[0]
    assert re.findall(r"^COPY .+$", STAGES[1], re.M) == ["COPY --from=build /opt/esper /opt/esper"]


def test_the_service_is_not_root_and_listens_beyond_loopback_where_keys_are_needed() -> None:
    users = re.findall(r"^USER (\d+):\d+$", STAGES[1], re.M)
    assert len(users) == 1
    assert int(users[0]) > 0
    assert "ESPER_URZA_HOST=0.0.0.0" in STAGES[1]
