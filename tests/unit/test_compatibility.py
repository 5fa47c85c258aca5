"""The table of what works where is told by tests, and by all of them."""

from pathlib import Path

import pytest

from tests.compatibility import FEATURES, PROOFS, Proof, cells, page, unproven

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
TWO = (Proof("plain", ("graft", "cull"), r"::plain"), Proof("plain", ("cull",), r"::other"))


@pytest.mark.parametrize(
    ("outcomes", "graft", "cull"),
    [
        ({"a::plain": "passed", "a::other": "passed"}, "pass", "pass"),
        ({"a::plain": "passed", "a::other": "failed"}, "pass", "**fail**"),
        ({"a::plain": "skipped", "a::other": "passed"}, "untested", "pass"),
        ({}, "untested", "untested"),
    ],
)
def test_a_cell_passes_when_all_of_its_tests_did(outcomes: dict[str, str], graft: str, cull: str) -> None:
    found = cells(TWO, outcomes)
    assert (found["plain", "graft"], found["plain", "cull"], found["plain", "rollback"]) == (graft, cull, "untested")


def test_a_pattern_that_names_no_test_is_found() -> None:
    assert unproven(TWO, ["a::plain"]) == ["::other"]


def test_the_committed_page_has_every_setup_and_no_failure() -> None:
    written = PAGE.read_text(encoding="utf-8")
    expected = page(cells(PROOFS, {}), count=0)
    rows = [line.split(" | ")[0] for line in expected.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in written.splitlines() if line.startswith("| ")] == rows
    assert "fail**" not in written
    assert all(f"**{feature}**" in written for feature in FEATURES)
