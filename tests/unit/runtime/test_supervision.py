"""A child answers or is gone within its limits, and nothing that it does reaches the parent."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.msgpack import Decoder

from esper.errors import ChildDied, DeadlineExceeded
from esper.runtime.supervision import ChildCommand, SupervisedChild

CHILD = '''
"""A child that does what it is told."""
import ctypes, os, signal, subprocess, sys, time
from msgspec.msgpack import decode, encode
from esper.runtime.pipe import take_over_pipes

pipe = take_over_pipes()
pipe.send(encode("ready"))
while (message := pipe.receive()) is not None:
    verb, *rest = decode(message)
    if verb == "echo":
        answer = rest[0]
    elif verb == "print":
        print("printed by Python", flush=True)
        os.write(1, b"printed by a library\\n")
        answer = sys.stdin.read()
    elif verb == "environment":
        answer = dict(os.environ)
    elif verb == "path":
        answer = sys.path
    elif verb == "pid":
        answer = os.getpid()
    elif verb == "sleep":
        time.sleep(rest[0])
        answer = "late"
    elif verb == "segfault":
        ctypes.string_at(0)
    elif verb == "exit":
        print("a last word", file=sys.stderr, flush=True)
        os._exit(3)
    elif verb == "chatter":
        print("x" * 2_000_000 + "the end", file=sys.stderr, flush=True)
        os._exit(1)
    elif verb == "garble":
        os.write(pipe._writer.fileno(), b"\\x01" + b"\\0" * 7 + b"\\xc1")
        time.sleep(60)
    elif verb == "shut":
        pipe._writer.close()
        time.sleep(60)
    elif verb == "breed":
        answer = subprocess.Popen(["sleep", "60"]).pid
    elif verb == "stubborn":
        pipe.send(encode("ok"))
        time.sleep(60)
    pipe.send(encode(answer))
'''
ANY: Decoder[object] = Decoder(object)
TEXT: Decoder[str] = Decoder(str)
PID: Decoder[int] = Decoder(int)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "obedient_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
async def child(folder: Path) -> AsyncIterator[SupervisedChild]:
    started = SupervisedChild(ChildCommand("obedient_child", end_limit_s=0.3))
    assert await started.start(TEXT) == "ready"
    yield started
    await started.close()
    assert not started.alive


def is_running(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def ends(pid: int, limit_s: float = 5.0) -> bool:
    for _ in range(int(limit_s / 0.02)):
        if not is_running(pid):
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_child_answers_one_request_after_the_other(child: SupervisedChild) -> None:
    big = "x" * 3_000_000
    for sent in ("", "one", big, {"a": [1, None, 2.5, b"\x00"]}):
        assert await child.ask(("echo", sent), ANY, limit_s=10) == sent
    assert child.alive


async def test_what_a_child_prints_or_reads_does_not_touch_the_pipe(child: SupervisedChild) -> None:
    assert await child.ask(("print",), TEXT, limit_s=10) == ""
    assert await child.ask(("echo", "still in step"), TEXT, limit_s=10) == "still in step"


async def test_a_child_knows_no_secret_of_its_parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    child = SupervisedChild(ChildCommand("obedient_child", environment={"OMP_NUM_THREADS": "1"}))
    await child.start(TEXT)
    known = await child.ask(("environment",), Decoder(dict[str, str]), limit_s=10)
    await child.close()
    assert known["OMP_NUM_THREADS"] == "1"
    assert set(known) <= {"OMP_NUM_THREADS", "PYTHONPATH", "PYTHONUTF8", "LD_LIBRARY_PATH", "TMPDIR", "LC_CTYPE"}


async def test_a_child_imports_what_its_parent_would_and_nothing_from_the_current_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path_factory.mktemp("trap")
    (trap / "msgspec.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(trap)
    child = SupervisedChild(ChildCommand("obedient_child"))
    await child.start(TEXT)
    path = await child.ask(("path",), Decoder(list[str]), limit_s=10)
    await child.close()
    wanted = list(dict.fromkeys(os.path.abspath(entry) for entry in sys.path))
    assert path[: len(wanted)] == wanted


async def test_a_child_that_is_late_is_killed(child: SupervisedChild) -> None:
    pid = child.pid
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        await child.ask(("sleep", 60), TEXT, limit_s=0.2)
    assert time.monotonic() - began < 2
    assert pid is not None
    assert await ends(pid)
    with pytest.raises(ChildDied, match="not alive"):
        await child.ask(("echo", 1), ANY, limit_s=1)


async def test_a_request_that_is_cancelled_takes_the_child_with_it(child: SupervisedChild) -> None:
    pid = child.pid
    asking = asyncio.create_task(child.ask(("sleep", 60), TEXT, limit_s=60))
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert pid is not None
    assert await ends(pid)


async def test_a_crash_is_told_by_its_signal(child: SupervisedChild) -> None:
    with pytest.raises(ChildDied) as caught:
        await child.ask(("segfault",), ANY, limit_s=10)
    assert caught.value.how == "signal SIGSEGV"


async def test_an_exit_is_told_by_its_code_and_its_last_words(child: SupervisedChild) -> None:
    with pytest.raises(ChildDied, match="exit code 3; it last said: a last word"):
        await child.ask(("exit",), ANY, limit_s=10)


async def test_only_the_end_of_a_flood_of_errors_is_kept(child: SupervisedChild) -> None:
    with pytest.raises(ChildDied) as caught:
        await child.ask(("chatter",), ANY, limit_s=10)
    assert caught.value.stderr.endswith("the end\n")
    assert len(caught.value.stderr) == 8_192


async def test_an_answer_of_another_type_is_not_believed(child: SupervisedChild) -> None:
    with pytest.raises(ChildDied, match="something else"):
        await child.ask(("echo", "a word"), PID, limit_s=10)
    assert not child.alive


async def test_garbage_on_the_pipe_is_not_believed(child: SupervisedChild) -> None:
    with pytest.raises(ChildDied, match="something else"):
        await child.ask(("garble",), ANY, limit_s=10)


async def test_an_answer_that_is_too_long_is_not_read(folder: Path) -> None:
    child = SupervisedChild(ChildCommand("obedient_child", longest_message_bytes=1_000))
    await child.start(TEXT)
    with pytest.raises(ChildDied, match="a message of"):
        await child.ask(("echo", "x" * 2_000), TEXT, limit_s=10)
    await child.close()


async def test_a_child_that_closes_its_pipe_but_lives_is_killed(child: SupervisedChild) -> None:
    pid = child.pid
    with pytest.raises(ChildDied, match="signal SIGKILL"):
        await child.ask(("shut",), ANY, limit_s=10)
    assert pid is not None
    assert not is_running(pid)


async def test_a_module_that_cannot_be_imported_says_so(folder: Path) -> None:
    (folder / "broken_child.py").write_text("import a_module_that_is_missing")
    child = SupervisedChild(ChildCommand("broken_child"))
    with pytest.raises(ChildDied, match="No module named 'a_module_that_is_missing'"):
        await child.start(TEXT)
    await child.close()


async def test_a_child_that_never_greets_is_killed(folder: Path) -> None:
    (folder / "mute_child.py").write_text("import time; time.sleep(60)")
    child = SupervisedChild(ChildCommand("mute_child", start_limit_s=0.3))
    with pytest.raises(DeadlineExceeded):
        await child.start(TEXT)
    pid = child.pid
    await child.close()
    assert pid is not None
    assert not is_running(pid)


async def test_closing_ends_a_child_that_does_not_listen(child: SupervisedChild) -> None:
    pid = child.pid
    assert await child.ask(("stubborn",), TEXT, limit_s=10) == "ok"
    began = time.monotonic()
    await child.close()
    assert time.monotonic() - began < 2
    assert pid is not None
    assert not is_running(pid)


async def test_what_a_child_has_started_ends_with_it(child: SupervisedChild) -> None:
    grandchild = await child.ask(("breed",), PID, limit_s=10)
    assert is_running(grandchild)
    with pytest.raises(DeadlineExceeded):
        await child.ask(("sleep", 60), TEXT, limit_s=0.1)
    assert await ends(grandchild)


PARENT = """
import asyncio
from msgspec.msgpack import Decoder
from esper.runtime.supervision import ChildCommand, SupervisedChild

async def main():
    child = SupervisedChild(ChildCommand("obedient_child"))
    await child.start(Decoder(str))
    print(child.pid, flush=True)
    print(await child.ask(("echo", "answered"), Decoder(str), limit_s=10), flush=True)
    if {hangs}:
        await child.ask(("sleep", 60), Decoder(str), limit_s=60)
    await child.close()

asyncio.run(main())
"""


def started(folder: Path, *, hangs: bool, from_stdin: bool = False) -> "subprocess.Popen[str]":
    """Run a program without a main guard, from a file or from standard input."""
    program = textwrap.dedent(PARENT.format(hangs=hangs))
    (folder / "program.py").write_text(program)
    argv = [sys.executable, "-"] if from_stdin else [sys.executable, str(folder / "program.py")]
    parent = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
    assert parent.stdin is not None
    if from_stdin:
        parent.stdin.write(program)
    parent.stdin.close()
    return parent


@pytest.mark.parametrize("from_stdin", [False, True], ids=["script", "stdin"])
def test_a_program_without_a_main_guard_has_children_too(folder: Path, from_stdin: bool) -> None:
    parent = started(folder, hangs=False, from_stdin=from_stdin)
    assert parent.stdout is not None
    lines = parent.stdout.read().split()
    parent.stdout.close()
    assert parent.wait(10) == 0
    assert lines[1:] == ["answered"]


async def test_a_child_at_work_dies_with_a_parent_that_is_killed(folder: Path) -> None:
    parent = started(folder, hangs=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert parent.stdout.readline() == "answered\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    assert await ends(pid, 2.0)
