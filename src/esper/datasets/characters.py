"""Text as characters: from a file, or the help pages that every Python brings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from esper.errors import ConfigError

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Text:
    """One text in three consecutive parts, as indices into its alphabet.

    Attributes:
        train: What a model learns from.
        validation: What choices are made by.
        test: Read once, at the end.
        alphabet: Every character that occurs, in order.
    """

    train: Tokens
    validation: Tokens
    test: Tokens
    alphabet: str


def characters(path: Path | None = None, *, validation_share: float = 0.1, test_share: float = 0.1) -> Text:
    """Return a text in characters; the parts follow each other, so that no passage is in two of them.

    Args:
        path: A UTF-8 text; by default Python's own help topics, about half a million characters of English and syntax.
        validation_share: Share of the text to choose by.
        test_share: Share to read once, the end of the text.

    Raises:
        ConfigError: If there is no such text, or it is too short.
    """
    text = _help_pages() if path is None else _read(path)
    alphabet = "".join(sorted(set(text)))
    tokens = np.searchsorted(np.array(list(alphabet)), np.array(list(text))).astype(np.int64)
    num_test, num_validation = round(test_share * len(tokens)), round(validation_share * len(tokens))
    num_train = len(tokens) - num_validation - num_test
    if min(num_train, num_validation, num_test) < 1:
        raise ConfigError(
            f"{len(tokens)} characters cannot be cut into three parts",
            why=f"the parts would be {num_train}, {num_validation} and {num_test} long",
            todo="give a longer text",
            code="ESP-2401",
        )
    train, validation, test = np.split(tokens, [num_train, num_train + num_validation])
    return Text(train, validation, test, alphabet)


def windows(tokens: Tokens, *, length: int, stride: int) -> tuple[Tokens, Tokens]:
    """Return passages of a text and, for each, the same one character later.

    Args:
        tokens: The text.
        length: Characters of a passage.
        stride: Characters from the start of one passage to the start of the next.

    Returns:
        Two arrays of shape (passages, length), in the order of the text.
    """
    starts = np.arange(0, len(tokens) - length, stride)[:, None] + np.arange(length)
    return tokens[starts], tokens[starts + 1]


def _help_pages() -> str:
    from pydoc_data.topics import topics

    return "\n".join(text for _, text in sorted(topics.items()))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"no text in {path}", why=str(error), todo="give a UTF-8 text file", code="ESP-2404"
        ) from error
