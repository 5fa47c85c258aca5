"""Stores for tests that speak S3, from the development packages: one that forgets, and one that keeps files on the disk."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from esper.errors import NotFound, StoreUnavailable
from esper.testing.servers import free_port

_START_LIMIT_S = 30.0
ACCESS_KEY_ID, SECRET_ACCESS_KEY = "testing", "testing"


class _Server(ABC):
    """A process that speaks S3 as long as the block lives, on loopback; killed, it can be started again on the same port.

    Args:
        folder: For its log, and what it keeps; it must exist.
    """

    packages: tuple[str, ...]
    install: str

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._buckets = 0
        self.port = free_port()

    @property
    def is_installed(self) -> bool:
        """Whether there is such a program on this machine."""
        return all(find_spec(name) is not None for name in self.packages)

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
        """Start it, and return when it answers.

        Raises:
            NotFound: If it is not installed.
            StoreUnavailable: If it does not start.
        """
        if not self.is_installed:
            raise NotFound("there is no S3 server on this machine", todo=f'pip install "{self.install}"')
        with (self._folder / "s3.log").open("ab") as output:
            self._process = subprocess.Popen(self._command(), stdout=output, stderr=output)
        ends_at = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < ends_at and self._process.poll() is None:
            try:
                with urllib.request.urlopen(self.url, timeout=2):
                    return
            except urllib.error.HTTPError:  # it answers, and does not know us
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise StoreUnavailable("the S3 server does not start", why=(self._folder / "s3.log").read_text()[-500:])

    def kill(self) -> None:
        """End it at once, without a chance to write anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=_START_LIMIT_S)
            self._process = None

    def new_bucket(self) -> str:
        """Make a bucket, and return its name."""
        self._buckets += 1
        name = f"esper-{self._buckets}"
        self._make(name)
        return name

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _make(self, bucket: str) -> None: ...


class S3Server(_Server):
    """Moto's S3: it knows most of what Amazon's does, such as writing only where nothing is, and holds all in memory."""

    packages, install = ("moto", "flask"), "moto[s3,server]"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def _make(self, bucket: str) -> None:
        request = urllib.request.Request(f"{self.url}/{bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            return


class S3FolderServer(_Server):
    """Nanio: buckets are folders and objects are files, synced before a request is answered; it checks signatures.

    A kill loses nothing that was acknowledged. It does not know conditional writes: who writes what is there writes it again.
    """

    packages, install = ("nanio",), "nanio"

    def path(self, bucket: str) -> Path:
        """Return the folder of a bucket; an object is the file of its name in it."""
        return self._folder / "data" / bucket

    def _command(self) -> list[str]:
        options = self._folder / "nanio.toml"
        options.write_text(f'[[users]]\naccess_key = "{ACCESS_KEY_ID}"\nsecret_key = "{SECRET_ACCESS_KEY}"\n')
        where = ["--data-dir", str(self._folder / "data"), "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "nanio", "serve", "--options", str(options), *where, "--no-access-log"]

    def _make(self, bucket: str) -> None:
        self.path(bucket).mkdir(parents=True)
