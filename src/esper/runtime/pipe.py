"""The child's end of a supervised pipe: whole messages come in and go out, and nothing else ever does."""

import os
import signal
import struct
import sys
from typing import BinaryIO

HEADER = struct.Struct("<Q")
"""Before each message goes its length in bytes."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Pipe:
    """Messages to and from the parent.

    Args:
        reader: Where messages come from.
        writer: Where answers go.
    """

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader, self._writer = reader, writer

    def receive(self) -> bytes | None:
        """Return the next message, or None once the parent has closed the pipe or is gone."""
        header = self._reader.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        (size,) = HEADER.unpack(header)
        message = self._reader.read(size)
        return message if len(message) == size else None

    def send(self, message: bytes) -> None:
        """Hand a message to the parent."""
        self._writer.write(HEADER.pack(len(message)))
        self._writer.write(message)
        self._writer.flush()


def take_over_pipes() -> Pipe:
    """Keep standard input and output for messages alone, and end when the parent does.

    Whatever prints from now on prints to standard error, and whatever reads standard input finds it empty.
    Call it before anything else is imported.
    """
    pipe = Pipe(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    die_with_parent()
    return pipe


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends; elsewhere the end of the pipe must do."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
