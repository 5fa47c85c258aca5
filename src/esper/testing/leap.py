"""A wall clock that jumps, for a whole process: a server's clock can be set forward and back while it runs.

```python
clock = LeapingClock(folder)
with RedisServer(folder, wrapper=clock.wrapper):
    clock.leap(3600)  # the server's time of day is an hour ahead at once
```

A small library that is loaded before the C library answers for the time of day; monotonic time is left alone. Linux with a C
compiler only.
"""

import shutil
import struct
import subprocess
from pathlib import Path

from esper.errors import NotFound

_SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *offset_ns;

__attribute__((constructor)) static void begin(void) {
  int file = open(getenv("ESPER_TESTING_LEAP"), O_RDONLY);
  void *page = file < 0 ? MAP_FAILED : mmap(0, sizeof *offset_ns, PROT_READ, MAP_SHARED, file, 0);
  if (page == MAP_FAILED) _exit(97);
  close(file);
  offset_ns = page;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int failed = syscall(SYS_clock_gettime, clock, at);
  if (!failed && offset_ns && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    long long ns = at->tv_nsec + *offset_ns % 1000000000;
    at->tv_sec += *offset_ns / 1000000000 + (ns >= 1000000000) - (ns < 0);
    at->tv_nsec = (ns + 1000000000) % 1000000000;
  }
  return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  int failed = clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
"""


class LeapingClock:
    """The time of day of the processes that are started with its ``wrapper``.

    Args:
        folder: For its files; it must exist.

    Raises:
        NotFound: If there is no C compiler, or it cannot make a library that is loaded first.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise NotFound("there is no C compiler on this machine", todo="install one, or leave clocks alone")
        self._offset = folder / "leap.offset"
        self._offset.write_bytes(struct.pack("q", 0))
        source, library = folder / "leap.c", folder / "leap.so"
        source.write_text(_SOURCE)
        made = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], capture_output=True, text=True
        )
        if made.returncode:
            raise NotFound("the C compiler cannot make a library", why=made.stderr[-500:], todo="mend it")
        self.wrapper: tuple[str, ...] = ("env", f"LD_PRELOAD={library}", f"ESPER_TESTING_LEAP={self._offset}")
        """Words to put before a command."""

    def leap(self, seconds: float) -> None:
        """Set the clock forward, or back where ``seconds`` is below zero."""
        with self._offset.open("r+b") as file:
            (offset_ns,) = struct.unpack("q", file.read(8))
            file.seek(0)
            file.write(struct.pack("q", offset_ns + round(seconds * 1e9)))
