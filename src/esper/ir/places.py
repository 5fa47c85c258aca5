"""Where in a JSON text each value stands."""

import re

from esper.ir.names import shown

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')
Span = tuple[int, int]


def places_of(text: str) -> dict[str, Span]:
    """Return begin and end of every value by its JSON path; that of a field begins with its name.

    Args:
        text: Valid JSON.
    """
    found: dict[str, Span] = {}
    open_ones: list[_Container] = []
    key: tuple[str, int] | None = None
    tokens = list(_TOKEN.finditer(text))
    for number, token in enumerate(tokens):
        word = token.group()
        inside = open_ones[-1] if open_ones else None
        follows = tokens[number + 1].group() if number + 1 < len(tokens) else ""
        if word in (",", ":"):
            continue
        if inside is not None and inside.is_object and key is None and follows == ":":
            key = (_unquoted(word), token.start())
            continue
        if word in ("]", "}"):
            ended = open_ones.pop()
            found[ended.path] = (ended.begin, token.end())
            continue
        path, begin = _path(inside, key, token.start())
        key = None
        if word in ("[", "{"):
            open_ones.append(_Container(path, begin, word == "{"))
        else:
            found[path] = (begin, token.end())
    return found


class _Container:
    """An object or a list that is not closed yet."""

    def __init__(self, path: str, begin: int, is_object: bool) -> None:
        self.path, self.begin, self.is_object, self.count = path, begin, is_object, 0


def _path(inside: _Container | None, key: tuple[str, int] | None, start: int) -> tuple[str, int]:
    if inside is None:
        return "$", start
    if key is not None:
        return f"{inside.path}.{shown(key[0])}", key[1]
    inside.count += 1
    return f"{inside.path}[{inside.count - 1}]", start


def _unquoted(word: str) -> str:
    return word[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\" in word else word[1:-1]
