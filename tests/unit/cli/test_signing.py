"""``esper keys signing`` keeps the forge's key and the ring of those that are trusted."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.cli.app import app
from esper.errors import ConfigError


def said(root: Path, *arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(
        app, ["keys", "signing", *arguments, "--root", str(root), "--json"], catch_exceptions=False
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_key_is_made_trusted_elsewhere_retired_and_revoked(tmp_path: Path) -> None:
    made = said(tmp_path / "a", "new")
    key_id = str(made["key_id"])
    assert said(tmp_path / "a", "list") == {"keys": [made]}
    there = said(tmp_path / "b", "trust", str(made["public"]), "--name", "a")
    assert (there["key_id"], there["name"]) == (key_id, "a")
    assert said(tmp_path / "b", "retire", key_id)["until"] is not None
    assert said(tmp_path / "b", "revoke", key_id, "--why", "lost")["why"] == "lost"
    assert said(tmp_path / "a", "new")["key_id"] != key_id


@pytest.mark.parametrize("wrong", ["%%%", "YWJj"])
def test_what_is_no_key_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match="ESP-2853"):
        said(tmp_path, "trust", wrong, "--name", "x")
