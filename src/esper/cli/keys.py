"""``esper keys``: who may use the store over HTTP, and (``esper keys signing``) whose signatures are trusted."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from esper.cli.signing import signing

if TYPE_CHECKING:
    from esper.services.urza.keys import ApiKeys, KeyInfo

keys = typer.Typer(name="keys", no_args_is_help=True, help="Who may use the store over HTTP, and who may sign.")
keys.add_typer(signing)

Root = Annotated[Path | None, typer.Option("--root", help="Folder of the library.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Result = TypeVar("Result")


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[str], typer.Option("--scope", help="read, write or admin; each includes those before it.")],
    days: Annotated[
        float | None, typer.Option("--days", help="How long it is valid; without it, for ever.", min=0.001)
    ] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print it; it cannot be shown again."""
    lifetime = None if days is None else timedelta(days=days)
    _show_new(_with_keys(root, "create", name, lambda own: own.create(name, scope, lifetime=lifetime)), as_json)


@keys.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="The key whose place the new one takes.", metavar="KEY")],
    overlap_hours: Annotated[
        float, typer.Option("--overlap-hours", help="How long the old one stays valid.", min=0)
    ] = 24.0,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Make a key in place of another, with the same name, scopes and lifetime."""
    overlap = timedelta(hours=overlap_hours)
    _show_new(_with_keys(root, "rotate", key_id, lambda own: own.rotate(key_id, overlap=overlap)), as_json)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key.", metavar="KEY")], root: Root = None, as_json: AsJson = False
) -> None:
    """End a key at once."""
    info = _with_keys(root, "revoke", key_id, lambda own: own.revoke(key_id))
    typer.echo(json.dumps(_told(info)) if as_json else f"{info.key_id} is revoked")


@keys.command(name="list")
def list_(root: Root = None, as_json: AsJson = False) -> None:
    """List the keys, without their secrets."""
    found = _with_keys(root, "list", "", lambda own: own.every())
    if as_json:
        typer.echo(json.dumps({"keys": [_told(info) for info in found]}))
        return
    for info in found:
        ends = "for ever" if info.expires_at is None else f"until {info.expires_at:%Y-%m-%d %H:%M}"
        state = ends if info.is_valid(datetime.now(UTC)) else "not valid"
        typer.echo(f"{info.key_id}  {','.join(info.scopes):<16}  {state:<22}  {info.name}")


def _with_keys(root: Path | None, verb: str, subject: str, work: "Callable[[ApiKeys], Awaitable[Result]]") -> Result:
    from esper.cli.stores import store_config
    from esper.services.urza.audit import Deed, done_by
    from esper.services.urza.keys import ApiKeys
    from esper.services.urza.stores import opened

    async def done() -> Result:
        async with await opened(store_config(root=root)) as manager:
            with done_by(Deed("command line", f"keys {verb}", subject)):
                return await work(ApiKeys(manager.database))

    return asyncio.run(done())


def _show_new(made: "tuple[str, KeyInfo]", as_json: bool) -> None:
    token, info = made
    typer.echo(json.dumps({**_told(info), "key": token}) if as_json else token)
    if not as_json:
        typer.echo(f"key {info.key_id} ({', '.join(info.scopes)}); it cannot be shown again", err=True)


def _told(info: "KeyInfo") -> dict[str, object]:
    moments = {
        name: None if (moment := getattr(info, name)) is None else moment.isoformat()
        for name in ("created_at", "expires_at", "revoked_at", "last_used_at")
    }
    return {
        "key_id": info.key_id, "name": info.name, "scopes": list(info.scopes),
        "valid": info.is_valid(datetime.now(UTC)), **moments,
    }  # fmt: skip
