"""Texts that every Python brings: its help pages, the docstrings of its library, and the code between them.

The help pages are what a host is pretrained on; docstrings are near to them, code is far. Characters are ASCII codes, so that the
three share one alphabet of 128.
"""

import ast
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SYMBOLS = 128
LENGTH = 450_000
"""Characters that are taken of each text."""
MODULES = (
    "argparse", "ast", "asyncio/base_events", "asyncio/streams", "bdb", "calendar", "cgi", "cmd", "codecs",
    "collections/__init__", "concurrent/futures/_base", "configparser", "contextlib", "csv", "datetime", "decimal",
    "difflib", "dis", "doctest", "email/message", "enum", "fractions", "ftplib", "functools", "gettext", "gzip",
    "heapq", "html/parser", "http/client", "http/cookiejar", "imaplib", "inspect", "ipaddress", "locale",
    "logging/__init__", "logging/handlers", "mailbox", "mimetypes", "optparse", "os", "pathlib", "pdb", "pickle",
    "pickletools", "platform", "plistlib", "poplib", "pprint", "pydoc", "random", "shelve", "shlex", "shutil",
    "smtplib", "socketserver", "sqlite3/dump", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "timeit", "tokenize", "trace", "traceback", "turtle", "typing", "unittest/case",
    "unittest/mock", "urllib/parse", "urllib/request", "uuid", "weakref", "xml/dom/minidom", "xml/etree/ElementTree",
    "xmlrpc/client", "zipfile",
)  # fmt: skip
"""Modules of the standard library whose sources are read; those that a version of Python lacks are left out."""

Codes = NDArray[np.int64]


@cache
def help_pages() -> Codes:
    """Return Python's help topics."""
    from pydoc_data.topics import topics

    return _codes("\n".join(text for _, text in sorted(topics.items())))


@cache
def docstrings() -> Codes:
    """Return the docstrings of the library, one after the other."""
    return _codes("\n\n".join(text for tree in _trees() for text in _docstrings(tree)))


@cache
def code() -> Codes:
    """Return the code of the library without comments and docstrings."""
    return _codes("\n\n".join(ast.unparse(_bare(tree)) for tree in _trees()))


TEXTS = {"help-pages": help_pages, "docstrings": docstrings, "code": code}
"""The texts by the names of their tasks."""


def parted(codes: Codes) -> tuple[Codes, Codes, Codes]:
    """Return eight tenths of a text to learn from, one to choose by, and the last to read once."""
    first, second = len(codes) * 8 // 10, len(codes) * 9 // 10
    return codes[:first], codes[first:second], codes[second:]


def _trees() -> list[ast.Module]:
    folder = Path(sysconfig.get_path("stdlib"))
    files = (folder / f"{name}.py" for name in MODULES)
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def _documented(tree: ast.Module) -> list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds) and ast.get_docstring(node) is not None]


def _docstrings(tree: ast.Module) -> list[str]:
    return [text for node in _documented(tree) if (text := ast.get_docstring(node)) is not None]


def _bare(tree: ast.Module) -> ast.Module:
    for node in _documented(tree):
        node.body = node.body[1:] or [ast.Pass()]
    return tree


def _codes(text: str) -> Codes:
    return np.frombuffer(text[:LENGTH].encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64)
