"""A picture shows every arm and the front, and equal tables give equal bytes."""

from pathlib import Path
from typing import Any

from benchmarks.growth.pictures import draw, front

TABLE: dict[str, Any] = {
    "use": "size unknown",
    "task": "digits",
    "reference": "esper",
    "arms": {
        arm: {"gflops": spent, "test_mean": reached, "test_error": 0.3}
        for arm, spent, reached in (("esper", 4.0, 95.0), ("static 3", 1.0, 90.0), ("static 12", 9.0, 94.0))
    },
}


def test_the_front_has_what_nothing_beats_in_both() -> None:
    points = {
        "cheap": (1.0, 90.0),
        "good": (4.0, 95.0),
        "worse": (9.0, 94.0),
        "same cost": (4.0, 94.5),
        "dear": (10.0, 96.0),
    }
    assert front(points) == ["cheap", "good", "dear"]


def test_a_picture_names_every_arm_and_is_the_same_each_time(tmp_path: Path) -> None:
    (file,) = draw([TABLE], tmp_path / "first")
    (again,) = draw([TABLE], tmp_path / "second")
    assert file.name == "size-unknown-digits.svg"
    assert all(f">{arm}</text>" in file.read_text(encoding="utf-8") for arm in TABLE["arms"])
    assert file.read_bytes() == again.read_bytes()
    assert len(file.read_bytes()) < 60_000
