"""What an operator sees of a bus, and may do to it: figures, dead letters, and messages as they pass.

Nothing here is a member of a group: looking changes nothing. What a bus cannot tell is None, and never a guess.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from esper.contracts.envelope import DeadLetter, Envelope
from esper.errors import ConfigError, ContractError, NotFound
from esper.ports import BusHealth


@dataclass(frozen=True)
class GroupFigures:
    """How far one group has come.

    Attributes:
        group: Its name.
        lag: Messages held that were not handed out to it yet, or None where the bus cannot tell.
        pending: Messages that were handed out to it and are not acknowledged.
        oldest_pending_s: How long ago the oldest of those was published, or None where there is none.
        redelivered: Those of them that were handed out more than once, or None where the bus cannot tell.
        lost: Messages that were trimmed before it saw them, or while they were pending, or None where the bus cannot tell.
    """

    group: str
    lag: int | None
    pending: int
    oldest_pending_s: float | None
    redelivered: int | None
    lost: int | None

    @property
    def depth(self) -> int | None:
        """Messages held that it has not finished, or None where the bus cannot tell."""
        return None if self.lag is None else self.lag + self.pending


@dataclass(frozen=True)
class StreamFigures:
    """What one stream holds.

    Attributes:
        stream: Its name.
        held: Messages that it holds.
        published: Messages that were ever published to it.
        removed: Messages that it holds no more: trimmed, or, of dead letters, put back or dropped.
        dead: Dead letters that came from it.
        groups: Its groups.
    """

    stream: str
    held: int
    published: int
    removed: int
    dead: int
    groups: tuple[GroupFigures, ...] = ()


@dataclass(frozen=True)
class Letter:
    """A dead letter where it lies.

    Attributes:
        grave: The stream that holds it.
        place: Its place there.
        content: The message and what became of it, or None where the entry is no dead letter.
        buried_at: When it was written, or None where it cannot be read.
        fault: Why it cannot be read, or empty.
    """

    grave: str
    place: str
    content: DeadLetter | None
    buried_at: datetime | None = None
    fault: str = ""

    @property
    def id(self) -> str:
        """Id of the message, or stream and place of an entry that is no dead letter."""
        return f"{self.grave}:{self.place}" if self.content is None else self.content.envelope.id


@dataclass(frozen=True)
class Passing:
    """A message as it passes.

    Attributes:
        place: Its place in the stream.
        envelope: The message, or None where the entry is none.
        fault: Why it is none, or empty.
    """

    place: str
    envelope: Envelope | None
    fault: str = ""


class Desk(Protocol):
    """Looks at one bus from outside, and moves its dead letters."""

    async def figures(self) -> list[StreamFigures]:
        """Return what every stream holds, by name.

        Raises:
            BusUnavailable: If the bus does not answer.
        """
        ...

    async def health(self) -> BusHealth:
        """Tell whether the bus takes messages now."""
        ...

    async def letters(self, stream: str | None = None) -> list[Letter]:
        """Return the dead letters that came from a stream, or from all, oldest first in each."""
        ...

    async def replay(self, letter: Letter) -> bool:
        """Put a message back at the end of its stream, under its id, and take its letter away; both or neither.

        Returns:
            Whether the letter was still there.

        Raises:
            ContractError: If it is no dead letter.
        """
        ...

    async def drop(self, letter: Letter) -> bool:
        """Take a letter away for good, and tell whether it was still there."""
        ...

    def follow(self, stream: str, *, last: int, wait: bool) -> AsyncIterator[Passing]:
        """Yield the last messages of a stream, and where ``wait`` is set, those that come, until the caller ends."""
        ...

    async def close(self) -> None:
        """Release what is held."""
        ...


def chosen(letters: Sequence[Letter], ids: Sequence[str]) -> list[Letter]:
    """Return the letters of the messages with these ids; a message that died in two groups has two.

    Raises:
        NotFound: If there is none with one of the ids.
    """
    there = {letter.id for letter in letters}
    missing = [wanted for wanted in ids if wanted not in there]
    if missing:
        raise NotFound(
            f"no dead letter {', '.join(missing)}", todo="see those that there are with esper bus dead", code="ESP-5201"
        )
    return [letter for letter in letters if letter.id in ids]


def message_of(letter: Letter) -> DeadLetter:
    """Return what a letter holds.

    Raises:
        ContractError: If it is no dead letter, so that nothing can be put back.
    """
    if letter.content is None:
        raise ContractError(
            f"{letter.id} cannot be put back", why=letter.fault, todo="drop it: esper bus drop", code="ESP-3201"
        )
    return letter.content


def check_stream(stream: str, known: Sequence[str]) -> None:
    """Refuse a stream that is not there.

    Raises:
        NotFound: If it is not; it names those that are.
    """
    if stream not in known:
        raise NotFound(
            f"no stream {stream}",
            why=f"there are {', '.join(known)}" if known else "there is none yet",
            code="ESP-5202",
        )


def check_choice(ids: Sequence[str], every: bool) -> None:
    """Refuse a command that names no letter, or names some and asks for all.

    Raises:
        ConfigError: If it does.
    """
    if bool(ids) == every:
        raise ConfigError(
            "letters and --all were given" if every else "no letter was named",
            todo="name the ids of messages, or give --all",
            code="ESP-2801",
        )
