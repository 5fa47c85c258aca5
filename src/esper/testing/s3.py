"""Stores for tests that speak S3, from the development packages: one that forgets, and one that keeps files on the disk."""

import sys
import urllib.request
from abc import abstractmethod
from importlib.util import find_spec
from pathlib import Path

from esper.errors import NotFound
from esper.testing.server import Server, answers_http

ACCESS_KEY_ID, SECRET_ACCESS_KEY = "testing", "testing"


class _S3(Server):
    """A process that speaks S3 as long as the block lives, on loopback; killed, it can be started again on the same port.

    Args:
        folder: For its log, and what it keeps; it must exist.
    """

    title = "the S3 server"
    log_name = "s3.log"
    packages: tuple[str, ...]
    install: str

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._buckets = 0

    @property
    def is_installed(self) -> bool:
        """Whether there is such a program on this machine."""
        return all(find_spec(name) is not None for name in self.packages)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it answers.

        Raises:
            NotFound: If it is not installed.
            StoreUnavailable: If it does not start.
        """
        if not self.is_installed:
            raise NotFound("there is no S3 server on this machine", todo=f'pip install "{self.install}"')
        self._run(self._command())

    def _answers(self) -> bool:
        return answers_http(self.url)

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


class S3Server(_S3):
    """Moto's S3: it knows most of what Amazon's does, such as writing only where nothing is, and holds all in memory."""

    packages, install = ("moto", "flask"), "moto[s3,server]"

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def _make(self, bucket: str) -> None:
        request = urllib.request.Request(f"{self.url}/{bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            return


class S3FolderServer(_S3):
    """Nanio: buckets are folders and objects are files, synced before a request is answered; it checks signatures.

    A kill loses nothing that was acknowledged. It does not know conditional writes: who writes what is there writes it again.
    """

    packages, install = ("nanio",), "nanio"

    def path(self, bucket: str) -> Path:
        """Return the folder of a bucket; an object is the file of its name in it."""
        return self.folder / "data" / bucket

    def _command(self) -> list[str]:
        options = self.folder / "nanio.toml"
        options.write_text(f'[[users]]\naccess_key = "{ACCESS_KEY_ID}"\nsecret_key = "{SECRET_ACCESS_KEY}"\n')
        where = ["--data-dir", str(self.folder / "data"), "--host", "127.0.0.1", "--port", str(self.port)]
        return [sys.executable, "-m", "nanio", "serve", "--options", str(options), *where, "--no-access-log"]

    def _make(self, bucket: str) -> None:
        self.path(bucket).mkdir(parents=True)
