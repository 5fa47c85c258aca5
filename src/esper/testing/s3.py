"""A store for tests that speaks S3, from the development packages; it holds everything in memory."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from esper.errors import NotFound, StoreUnavailable
from esper.testing.servers import free_port

_START_LIMIT_S = 30.0
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "testing", "testing"


class S3Server:
    """An S3 that lives as long as the block, on loopback.

    Args:
        folder: For its log; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._buckets = 0
        self.port = free_port()

    @property
    def is_installed(self) -> bool:
        """Whether there is such a program on this machine."""
        return find_spec("moto") is not None and find_spec("flask") is not None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, empty, and return when it answers.

        Raises:
            NotFound: If it is not installed.
            StoreUnavailable: If it does not start.
        """
        if not self.is_installed:
            raise NotFound("there is no S3 server on this machine", todo='pip install "moto[s3,server]"')
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with (self._folder / "s3.log").open("ab") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        ends_at = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < ends_at and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/moto-api/", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise StoreUnavailable("the S3 server does not start", why=(self._folder / "s3.log").read_text()[-500:])

    def kill(self) -> None:
        """End it at once; what it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=_START_LIMIT_S)
            self._process = None

    def new_bucket(self) -> str:
        """Make a bucket, and return its name."""
        self._buckets += 1
        name = f"esper-{self._buckets}"
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            return name
