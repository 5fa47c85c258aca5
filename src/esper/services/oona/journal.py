"""The journal of the in-process bus: a SQLite file that a killed process leaves whole."""

import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import msgspec

from esper.contracts.envelope import Envelope
from esper.errors import BusUnavailable, ConfigError, NotFound, StoreUnavailable
from esper.services.oona.codec import packed_together, unpacked_together

VERSION = 2
"""Of the tables; it stands in the file."""

# Rows hold many messages: SQLite gives up the interpreter's lock with each row, and may wait long to have it back.
_TABLES = """
CREATE TABLE messages (
    stream TEXT, first_seq INTEGER, next_seq INTEGER NOT NULL, envelopes BLOB NOT NULL, PRIMARY KEY (stream, first_seq)
) WITHOUT ROWID;
CREATE TABLE streams (name TEXT PRIMARY KEY, next_seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE groups (
    stream TEXT, name TEXT, next_seq INTEGER NOT NULL, pending BLOB NOT NULL, PRIMARY KEY (stream, name)
) WITHOUT ROWID;
"""
_pending_of = msgspec.msgpack.Decoder(frozenset[int]).decode


@dataclass(frozen=True)
class GroupState:
    """How far a group has come in a stream.

    Attributes:
        stream: The stream.
        name: The group.
        next_seq: First message that was never handed out.
        pending: Places of messages that were handed out and are not settled.
    """

    stream: str
    name: str
    next_seq: int
    pending: frozenset[int] = frozenset()


@dataclass
class StreamState:
    """What the journal holds of a stream.

    Attributes:
        next_seq: Place of the next message.
        messages: Place and envelope, oldest first.
        groups: Its groups.
    """

    next_seq: int
    messages: list[tuple[int, Envelope]] = field(default_factory=list)
    groups: list[GroupState] = field(default_factory=list)


class JournalHeld(StoreUnavailable):
    """Another process holds the journal."""


class Journal:
    """Keeps messages and acknowledgements of one bus; one process at a time may hold it.

    What was committed survives the death of the process. With ``sync="full"`` it survives the loss of power as well, at the
    price of a write to the disk itself with every commit.

    Args:
        path: The file; it is made where it is missing.
        sync: ``normal`` or ``full``.
        wait_s: How long to wait for another process that holds it.

    Raises:
        ConfigError: If ``sync`` is neither.
        JournalHeld: If another process holds the file.
        StoreUnavailable: If the file cannot be opened, or is damaged or newer.
    """

    def __init__(self, path: Path, *, sync: Literal["normal", "full"] = "normal", wait_s: float = 1.0) -> None:
        if sync not in ("normal", "full"):
            raise ConfigError(f"sync={sync!r} cannot be used", todo='use "normal" or "full"')
        self.path = path
        with self._opening():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=wait_s)
        try:
            with self._opening():
                self._prepare(sync)
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def first_free(cls, folder: Path, name: str) -> Self:
        """Return the first of the journals ``{name}-0``, ``{name}-1``, … that no process holds; one that was killed left its own.

        Raises:
            StoreUnavailable: If a file cannot be opened, or is damaged or newer.
        """
        for number in itertools.count():
            with suppress(JournalHeld):
                return cls(folder / f"{name}-{number}.journal", wait_s=0.0)
        raise AssertionError("numbers do not end")

    @classmethod
    def existing(cls, path: Path) -> Self:
        """Return the journal in a file that is there already, and make none.

        Raises:
            NotFound: If there is no such file.
            ConfigError: If it is no journal.
            StoreUnavailable: If it is held by another process, or cannot be read.
        """
        if not path.is_file():
            raise NotFound(f"there is no journal {path}", todo="give the path of one", code="ESP-5203")
        with suppress(sqlite3.OperationalError):  # It is held: opening it says so.
            _check_tables(path)
        return cls(path)

    def load(self) -> dict[str, StreamState]:
        """Return what the journal holds, by stream.

        Raises:
            StoreUnavailable: If it cannot be read.
            ContractError: If it holds a message that is none.
        """
        with self._opening():
            found = {
                name: StreamState(int(seq)) for name, seq in self._db.execute("SELECT name, next_seq FROM streams")
            }
            for stream, first_seq, data in self._db.execute(
                "SELECT stream, first_seq, envelopes FROM messages ORDER BY stream, first_seq"
            ):
                found[stream].messages += enumerate(unpacked_together(data), first_seq)
            for stream, name, next_seq, pending in self._db.execute("SELECT * FROM groups"):
                state = GroupState(stream, name, next_seq, _pending_of(pending))
                found.setdefault(stream, StreamState(next_seq)).groups.append(state)
        return found

    def commit(
        self,
        messages: Iterable[tuple[str, int, Sequence[Envelope]]],
        groups: Iterable[GroupState],
        trims: Iterable[tuple[str, int]],
    ) -> None:
        """Keep all of it, or nothing.

        Args:
            messages: A stream, the place of its first new message, and its new messages.
            groups: How far groups have come.
            trims: Stream, and the place of the oldest message to keep; older ones may stay a little longer.

        Raises:
            BusUnavailable: If the disk is full or fails; nothing of it is kept.
        """
        rows = [(stream, seq, seq + len(envelopes), packed_together(envelopes)) for stream, seq, envelopes in messages]
        with self._committed():
            self._db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", rows)
            self._db.executemany("INSERT OR REPLACE INTO streams VALUES (?, ?)", [(row[0], row[2]) for row in rows])
            self._db.executemany("INSERT OR REPLACE INTO groups VALUES (?, ?, ?, ?)", map(_row, groups))
            self._db.executemany("DELETE FROM messages WHERE stream = ? AND next_seq <= ?", trims)

    def replace(self, streams: Mapping[str, StreamState]) -> None:
        """Hold these streams exactly as they are given, all or none; for a journal that no bus is open on.

        Raises:
            BusUnavailable: If the disk is full or fails; everything is as it was.
        """
        with self._committed():
            for name, state in streams.items():
                for table in ("messages", "groups"):
                    self._db.execute(f"DELETE FROM {table} WHERE stream = ?", (name,))
                self._db.execute("INSERT OR REPLACE INTO streams VALUES (?, ?)", (name, state.next_seq))
                rows = [(name, seq, seq + 1, packed_together([envelope])) for seq, envelope in state.messages]
                self._db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?)", rows)
                self._db.executemany("INSERT INTO groups VALUES (?, ?, ?, ?)", map(_row, state.groups))

    @contextmanager
    def _committed(self) -> Iterator[None]:
        """Keep all that is written within the block, or nothing."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors.
                self._db.execute("ROLLBACK")
            raise BusUnavailable(
                f"the journal {self.path} cannot be written", why=str(error), todo="free space on its disk, then go on"
            ) from error

    def check(self) -> None:
        """Write something to the file that changes nothing.

        Raises:
            BusUnavailable: If it cannot be written.
        """
        with self._committed():
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def size_bytes(self) -> int:
        """Return how large the file is, with what is still to be moved into it."""
        beside = self.path.with_name(self.path.name + "-wal")
        return sum(path.stat().st_size for path in (self.path, beside) if path.exists())

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _prepare(self, sync: str) -> None:
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA synchronous = {sync}")
        self._db.execute("BEGIN IMMEDIATE")  # From here on, no other process gets the file.
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise StoreUnavailable(
                f"the journal {self.path} cannot be read",
                why=f"it has version {version}, and this library knows {VERSION}",
                todo="use the release that wrote it",
            )
        if version == 0:
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")
        self._db.execute("COMMIT")

    @contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            held = "locked" in str(error)
            raise (JournalHeld if held else StoreUnavailable)(
                f"the journal {self.path} cannot be used",
                why="another process holds it" if held else str(error),
                todo="give each process a journal of its own"
                if held
                else "name a file that can be written, or restore it",
            ) from error


def _row(group: GroupState) -> tuple[str, str, int, bytes]:
    return group.stream, group.name, group.next_seq, msgspec.msgpack.encode(group.pending)


def _check_tables(path: Path) -> None:
    """Refuse a file that no journal was made in, before anything could be written to it."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0)) as db:
            found = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise ConfigError(
            f"{path} is no journal", why=str(error), todo="give the path of one", code="ESP-2802"
        ) from error
    if not found >= {"messages", "streams", "groups"}:
        raise ConfigError(
            f"{path} is no journal", why="it has other tables", todo="give the path of one", code="ESP-2802"
        )
