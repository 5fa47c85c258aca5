"""A process of a chaos schedule, as the stage sees it."""

import asyncio
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from benchmarks.support.chaos_worker import Spec
from benchmarks.support.report import ROOT

_END_LIMIT_S = 30.0
_FULL_BYTES = 32_768


class Actor:
    """A process that may be killed and started again; each start has a name of its own."""

    def __init__(self, folder: Path, name: str, spec: dict[str, object], wrapper: Sequence[str] = ()) -> None:
        self._folder, self.name, self._spec, self._wrapper = folder, name, spec, wrapper
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] = (folder / f"{name}.err").open("wb+")
        self.crashes: list[str] = []

    def start(self) -> None:
        """Start it under its next name."""
        process = f"{self.name}-{self._starts}"
        self._starts += 1
        member = str(self._spec["member"]).format(process=process)
        spec = Spec(**self._spec | {"process": process, "member": member})  # type: ignore[arg-type]
        if member and spec.readers:
            spec.readers[:] = [(group, member) for group, _ in spec.readers]
        command = [*self._wrapper, sys.executable, "-m", "benchmarks.support.chaos_worker", json.dumps(asdict(spec))]
        # Through a pipe: a full disk stops the bus, and not what is noted about it.
        self._file = self._folder / f"{process}.jsonl"
        with self._file.open("ab") as file:
            self._pipe = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file)
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=self._pipe.stdin, stderr=self._errors)
        assert self._pipe.stdin is not None
        self._pipe.stdin.close()

    @property
    def has_begun(self) -> bool:
        """Whether the process that was started last has noted something, or has ended."""
        process = self._process
        return process is None or process.poll() is not None or self._file.stat().st_size > 0

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._note_crash()
            self._process.kill()
            self._wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self._process is not None:
            self._process.send_signal(number)

    async def stop(self) -> None:
        """End it in good order."""
        if self._process is None:
            return
        self._note_crash()
        (self._folder / f"{self.name}-{self._starts - 1}").touch()
        try:
            code = await asyncio.to_thread(self._process.wait, _END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.crashes.append(f"{self.name} did not end")
            self._process.kill()
        else:
            self._note_crash(code)
        self._wait()

    def fill_disk(self, full: bool) -> None:
        """Let its files grow no further, or again."""
        if self._process is not None and self._process.poll() is None:
            soft = _FULL_BYTES if full else resource.RLIM_INFINITY
            resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def close(self) -> None:
        """End it, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._wait()
        self._errors.close()

    def _note_crash(self, code: int | None = None) -> None:
        assert self._process is not None
        code = self._process.poll() if code is None else code
        if code:
            self._errors.seek(0)
            self.crashes.append(f"{self.name} ended with {code}: {self._errors.read().decode()[-3000:]}")

    def _wait(self) -> None:
        assert self._process is not None
        assert self._pipe is not None
        self._process.wait(_END_LIMIT_S)
        self._pipe.wait(_END_LIMIT_S)
        self._process = None
