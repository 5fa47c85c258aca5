"""A confined process writes in one folder, and nowhere else, whatever it starts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from esper.services.tezzeret.landlock import granted

PROGRAM = """
import json, os, subprocess, sys, threading
from pathlib import Path
from esper.services.tezzeret.landlock import write_only_in

own, other = Path(sys.argv[1]), Path(sys.argv[2])
write_only_in(own if sys.argv[3] == "folder" else None)
told = {}

def tried(name, act):
    try:
        act()
        told[name] = "done"
    except OSError as error:
        told[name] = error.strerror

tried("inside", lambda: (own / "made").write_text("x"))
tried("made", lambda: (other / "made").touch())
tried("written", lambda: os.open(other / "there", os.O_WRONLY))
tried("truncated", lambda: os.truncate(other / "there", 0))
tried("removed", lambda: (other / "there").unlink())
tried("moved", lambda: (own / "made").rename(other / "moved"))
tried("linked", lambda: (other / "link").symlink_to(own))
tried("folder", lambda: (other / "folder").mkdir())
tried("read", lambda: (other / "there").read_text())
tried("thrown away", lambda: Path(os.devnull).write_text("x"))
thread = threading.Thread(target=tried, args=("thread", lambda: (other / "thread").touch()))
thread.start()
thread.join()
told["program"] = subprocess.run(["touch", other / "program"], capture_output=True).returncode
print(json.dumps(told))
"""

pytestmark = pytest.mark.skipif(not granted(), reason="this system confines no process so")


def told(tmp_path: Path, where: str) -> dict[str, object]:
    own, other = tmp_path / "own", tmp_path / "other"
    own.mkdir()
    other.mkdir()
    (other / "there").write_text("kept")
    argv = [sys.executable, "-c", PROGRAM, str(own), str(other), where]
    run = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert [file.name for file in other.iterdir()] == ["there"]
    assert (other / "there").read_text() == "kept"
    found = json.loads(run.stdout)
    assert isinstance(found, dict)
    return found


REFUSED = ("made", "written", "truncated", "removed", "linked", "folder", "thread")


@pytest.mark.parametrize(("where", "inside"), [("folder", "done"), ("nowhere", "Permission denied")])
def test_a_confined_process_writes_in_its_folder_alone(tmp_path: Path, where: str, inside: str) -> None:
    found = told(tmp_path, where)
    assert {name: found[name] for name in REFUSED} == dict.fromkeys(REFUSED, "Permission denied")
    assert found["inside"] == inside
    assert found["moved"] != "done"
    assert found["program"] != 0
    assert found["read"] == found["thrown away"] == "done"
