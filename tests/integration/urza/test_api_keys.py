"""Keys are made, rotated and revoked, and end when they should."""

import json
from datetime import timedelta
from pathlib import Path

from typer.testing import CliRunner

from esper.cli.app import app
from esper.services.urza.kernel_manager import KernelManager
from esper.services.urza.keys import ApiKeys
from esper.testing.clock import ManualClock


def test_keys_are_made_listed_rotated_and_revoked_from_the_shell(tmp_path: Path) -> None:
    def esper(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["keys", *arguments, "--root", str(tmp_path / "lib")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    made = json.loads(esper("create", "ci", "--scope", "read", "--days", "30", "--json"))
    fresh = json.loads(esper("rotate", made["key_id"], "--overlap-hours", "0", "--json"))
    assert (fresh["name"], fresh["scopes"]) == ("ci", ["read"])
    esper("revoke", fresh["key_id"])
    listed = json.loads(esper("list", "--json"))["keys"]
    assert [key["valid"] for key in listed] == [False, False]
    assert made["key"] not in json.dumps(listed)


async def test_a_key_ends_when_it_expires_and_an_old_one_stays_for_the_overlap(tmp_path: Path) -> None:
    async with await KernelManager.open(tmp_path) as manager:
        clock = ManualClock()
        keys = ApiKeys(manager.database, clock)
        short, _ = await keys.create("short", ["read"], lifetime=timedelta(hours=1))
        clock.advance(3599)
        assert await keys.check(short) is not None
        clock.advance(1)
        assert await keys.check(short) is None
        old, info = await keys.create("long", ["admin", "read"])
        new, _ = await keys.rotate(info.key_id, overlap=timedelta(hours=1))
        clock.advance(3599)
        assert await keys.check(old) is not None
        assert await keys.check(new) is not None
        clock.advance(2)
        assert await keys.check(old) is None
        await keys.revoke(info.key_id)
        assert await keys.check(old) is None
        assert await keys.check(new) is not None
        for wrong in ("", "x", new[:-1], new + "x", old.replace("esper_", "esper-"), "\ud800"):
            assert await keys.check(wrong) is None
