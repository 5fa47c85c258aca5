"""``esper library``: a library as files, and what it lets go."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from esper.services.urza.exchange import Exchanged
    from esper.services.urza.garbage import Collected

library = typer.Typer(name="library", no_args_is_help=True, help="A library as files, and what it lets go.")

Folder = Annotated[Path, typer.Argument(help="The folder with the files.", metavar="DIR")]
Root = Annotated[Path | None, typer.Option("--root", help="Folder of the library.", metavar="DIR")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


@library.command(name="export")
def export_(folder: Folder, root: Root = None, as_json: AsJson = False) -> None:
    """Write every blueprint, and every validated kernel with its report and its bytes, as JSON Lines and files."""
    _show(_exchanged(folder, root, taking_in=False), "written", as_json)


@library.command(name="import")
def import_(folder: Folder, root: Root = None, as_json: AsJson = False) -> None:
    """Take in what was exported; what is there already stays as it is."""
    _show(_exchanged(folder, root, taking_in=True), "taken in", as_json)


@library.command()
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be removed, and change nothing.")] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Remove kernels that nobody may use any more and bytes that nothing refers to, once they are old enough."""
    done = asyncio.run(_collected(root, dry_run=dry_run))
    if as_json:
        typer.echo(json.dumps(vars(done) | {"dry_run": dry_run}))
        return
    typer.echo(
        f"{'would be removed' if dry_run else 'removed'}: {done.kernels} kernels, {done.blobs} blobs "
        f"({done.size_bytes / 2**20:.1f} MiB), {done.answers} answers to requests"
    )


async def _collected(root: Path | None, *, dry_run: bool) -> "Collected":
    from esper.cli.stores import store_config
    from esper.services.urza.kernel_manager import collector_of
    from esper.services.urza.stores import opened

    config = store_config(root=root)
    async with await opened(config) as manager:
        collector = collector_of(manager, config.retention)
        return await (collector.preview() if dry_run else collector.collect())


def _exchanged(folder: Path, root: Path | None, *, taking_in: bool) -> "Exchanged":
    from esper.cli.stores import store_config
    from esper.services.urza.audit import Deed, done_by
    from esper.services.urza.exchange import export_library, import_library
    from esper.services.urza.stores import opened

    async def done() -> "Exchanged":
        async with await opened(store_config(root=root)) as manager:
            with done_by(Deed("command line", "library import", str(folder))):
                return await (import_library if taking_in else export_library)(manager, folder)

    return asyncio.run(done())


def _show(done: "Exchanged", verb: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(vars(done)))
        return
    typer.echo(f"{verb}: {done.blueprints} blueprints, {done.kernels} kernels, {done.size_bytes / 2**20:.1f} MiB")
