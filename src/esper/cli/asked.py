"""The store that a command asks: a library in a folder, or a service by its address."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar, Union

import typer

if TYPE_CHECKING:
    from esper.services.clients import UrzaClient
    from esper.services.urza.kernel_manager import KernelManager

Result = TypeVar("Result")
Store: TypeAlias = Union["KernelManager", "UrzaClient"]

Root = Annotated[Path | None, typer.Option("--root", help="Folder of the library.", metavar="DIR")]
Urza = Annotated[str | None, typer.Option("--urza", help="Address of a store, in place of a folder.", metavar="URL")]
KeyFile = Annotated[
    Path | None, typer.Option("--key-file", help="File with the API key of that store.", metavar="FILE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def at_store(
    work: Callable[[Store], Awaitable[Result]], deed: str, urza: str | None, key_file: Path | None, root: Path | None
) -> Result:
    """Do something with the library in a folder, or with a store that is asked over HTTP.

    Args:
        work: What is done.
        deed: The command, for the record of who did what.
        urza: Address of a store, or None.
        key_file: File with its API key.
        root: Folder of the library; that of the settings where it is None.

    Raises:
        ConfigError: If both are given, or the key cannot be read.
    """
    from esper.errors import ConfigError

    if urza is not None and root is not None:
        raise ConfigError(
            "a command is about one store", why="--urza and --root are both given", todo="give one of them"
        )
    if urza is None and key_file is not None:
        raise ConfigError("a folder takes no key", todo="give --urza with --key-file, or neither")
    return asyncio.run(_remote(work, urza, key_file) if urza is not None else _local(work, deed, root))


async def _local(work: Callable[[Store], Awaitable[Result]], deed: str, root: Path | None) -> Result:
    from esper.cli.stores import store_config
    from esper.services.urza.audit import Deed, done_by
    from esper.services.urza.stores import opened

    async with await opened(store_config(root=root)) as manager:
        with done_by(Deed("command line", deed, "")):
            return await work(manager)


async def _remote(work: Callable[[Store], Awaitable[Result]], urza: str, key_file: Path | None) -> Result:
    from esper.errors import ConfigError
    from esper.services.clients import UrzaClient

    try:
        key = None if key_file is None else key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the key cannot be read from {key_file}", why=error.strerror or str(error)) from None
    async with UrzaClient(urza, key=key) as client:
        return await work(client)
