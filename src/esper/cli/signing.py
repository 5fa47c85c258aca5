"""``esper keys signing``: the forge's own key, and the ring of those that are trusted."""

import base64
import binascii
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from esper.signing.keys import KeyRing, Trusted

signing = typer.Typer(name="signing", no_args_is_help=True, help="Who may sign what can carry code.")

Root = Annotated[Path, typer.Option("--root", help="Folder of the forge: forge.key and trusted.json.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
KeyId = Annotated[str, typer.Argument(help="The key.", metavar="KEY")]
Named = Annotated[str, typer.Option("--name", help="Whose it is.")]
ROOT = Path("./esper-forge")


@signing.command()
def new(name: Named = "forge", root: Root = ROOT, as_json: AsJson = False) -> None:
    """Make the forge's key and trust it; the one before signs no more, and what it signed stays trusted."""
    from esper.services.tezzeret.identity import Identity

    told = Identity.at(root).renewed(name=name, now=datetime.now(UTC))
    _show(told, as_json)


@signing.command(name="list")
def list_(root: Root = ROOT, as_json: AsJson = False) -> None:
    """List the keys that are, or were, trusted."""
    found = _ring(root).keys
    if as_json:
        typer.echo(json.dumps({"keys": [_told(known) for known in found]}))
        return
    for known in found:
        typer.echo(f"{known.key_id}  {_state(known):<28}  {known.name}")


@signing.command()
def trust(
    public: Annotated[str, typer.Argument(help="The public key in base64, as list --json shows it.", metavar="PUBLIC")],
    name: Named,
    root: Root = ROOT,
    as_json: AsJson = False,
) -> None:
    """Trust the key of another forge."""
    from esper.errors import ConfigError

    try:
        key = base64.b64decode(public, validate=True)
    except binascii.Error as error:
        raise ConfigError("this is no public key", why=f"it is no base64: {error}", code="ESP-2853") from error
    ring = _ring(root).trust(key, name=name)
    _write(root, ring)
    _show(ring.keys[-1], as_json)


@signing.command()
def retire(key_id: KeyId, root: Root = ROOT, as_json: AsJson = False) -> None:
    """Say that a key signs no more; what it signed until now stays trusted."""
    ring = _ring(root).retire(key_id, now=datetime.now(UTC))
    _write(root, ring)
    _show(ring.named(key_id), as_json)


@signing.command()
def revoke(
    key_id: KeyId,
    why: Annotated[str, typer.Option("--why", help="The reason; it is shown to whoever is refused.")],
    root: Root = ROOT,
    as_json: AsJson = False,
) -> None:
    """Trust nothing any more that a key ever signed."""
    ring = _ring(root).revoke(key_id, why=why, now=datetime.now(UTC))
    _write(root, ring)
    _show(ring.named(key_id), as_json)


def _ring(root: Path) -> "KeyRing":
    from esper.services.tezzeret.identity import Identity

    return Identity.at(root).ring


def _write(root: Path, ring: "KeyRing") -> None:
    from esper.services.tezzeret.identity import RING_FILE

    ring.write(root / RING_FILE)


def _show(known: "Trusted", as_json: bool) -> None:
    typer.echo(json.dumps(_told(known)) if as_json else f"{known.key_id} ({known.name}): {_state(known)}")


def _state(known: "Trusted") -> str:
    if known.revoked is not None:
        return f"revoked {known.revoked:%Y-%m-%d}: {known.why}"
    return "trusted" if known.until is None else f"retired {known.until:%Y-%m-%d}"


def _told(known: "Trusted") -> dict[str, object]:
    moments = {
        name: None if (moment := getattr(known, name)) is None else moment.isoformat()
        for name in ("since", "until", "revoked")
    }
    return {"key_id": known.key_id, "name": known.name, "public": known.public, "why": known.why, **moments}
