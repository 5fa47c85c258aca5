"""A forge has one key at a time, and trusts what its earlier keys signed until they are revoked."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from esper.services.tezzeret.identity import KEY_FILE, RING_FILE, Identity

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_a_forge_without_a_key_gets_one_that_it_trusts_and_keeps_it(tmp_path: Path) -> None:
    root = tmp_path / "forge"
    assert Identity.at(root).key is None
    assert not root.exists()
    made = Identity.established(root, name="forge", now=NOW)
    assert made.key is not None
    assert made.ring.named(made.key.key_id).in_use
    assert sorted(path.name for path in root.iterdir()) == [KEY_FILE, RING_FILE]
    again = Identity.established(root, name="forge", now=NOW + timedelta(1))
    assert again.key is not None
    assert again.key.key_id == made.key.key_id


def test_a_fresh_key_retires_the_one_before_and_leaves_a_revoked_one_revoked(tmp_path: Path) -> None:
    first = Identity.established(tmp_path, name="forge", now=NOW)
    assert first.key is not None
    second = first.renewed(name="forge", now=NOW + timedelta(1))
    ring = Identity.at(tmp_path).ring
    assert ring.named(first.key.key_id).until == NOW + timedelta(1)
    ring.revoke(second.key_id, why="lost", now=NOW).write(tmp_path / RING_FILE)
    third = Identity.at(tmp_path).renewed(name="forge", now=NOW + timedelta(2))
    states = {known.key_id: (known.in_use, known.revoked is not None) for known in Identity.at(tmp_path).ring.keys}
    assert states == {
        first.key.key_id: (False, False), second.key_id: (False, True), third.key_id: (True, False),
    }  # fmt: skip
