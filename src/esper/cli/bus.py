"""``esper bus``: what travels between parts."""

import asyncio
import json
import shutil
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from esper.cli.tables import NOTHING, age, cut, lines_of, number

if TYPE_CHECKING:
    from esper.services.oona.desk import Desk, Letter, Passing, StreamFigures

Result = TypeVar("Result")

bus = typer.Typer(name="bus", no_args_is_help=True, help="What travels between parts.")

Url = Annotated[
    str | None,
    typer.Option("--url", help="redis:// address, or the path of a journal. Otherwise that of the settings."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Ids = Annotated[list[str] | None, typer.Argument(help="Ids of messages, as esper bus dead lists them.", metavar="ID")]
All = Annotated[bool, typer.Option("--all", help="Every dead letter of the stream.")]


@bus.command()
def topics(as_json: AsJson = False) -> None:
    """List the streams with their contracts, writers and readers."""
    from esper.contracts.topics import TOPICS

    if as_json:
        typer.echo(json.dumps({"topics": [topic.to_json() for topic in TOPICS.values()]}))
        return
    rows = [("STREAM", "MESSAGE", "WRITERS", "READERS", "RETENTION")]
    for topic in TOPICS.values():
        message = f"{topic.model.__name__} {topic.version}"
        rows.append((topic.stream, message, ", ".join(topic.writers), ", ".join(topic.readers), topic.retention))
    _print(lines_of(rows))


@bus.command()
def stats(
    stream: Annotated[str | None, typer.Argument(help="One stream only.", metavar="STREAM")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show what each stream holds, and how far each of its groups has come."""
    from esper.services.oona.desk import check_stream
    from esper.services.oona.shown import figures_to_json

    found = _at(url, lambda desk: desk.figures())
    if stream is not None:
        check_stream(stream, [figures.stream for figures in found])
        found = [figures for figures in found if figures.stream == stream]
    if as_json:
        typer.echo(json.dumps({"streams": [figures_to_json(figures) for figures in found]}, allow_nan=False))
        return
    heads = ("STREAM", "HELD", "REMOVED", "DEAD", "GROUP", "LAG", "PENDING", "OLDEST", "REDELIVERED", "LOST")
    rows = [heads, *(row for figures in found for row in _rows_of(figures))]
    _print(lines_of(rows, right=(1, 2, 3, 5, 6, 7, 8, 9)) if found else ["the bus holds no stream"])


@bus.command()
def health(url: Url = None, as_json: AsJson = False) -> None:
    """Tell whether the bus takes messages now; exit code 1 where it does not."""
    from dataclasses import asdict

    found = _at(url, lambda desk: desk.health())
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        told = f"usable, answered in {found.answered_s * 1e3:.1f} ms" if found.usable else f"not usable: {found.why}"
        typer.echo(f"{found.server}: {told}")
        if found.streams is not None:
            limit = "" if found.limit_bytes is None else f" of {found.limit_bytes / 2**20:,.1f}"
            used = "" if found.used_bytes is None else f", {found.used_bytes / 2**20:,.1f}{limit} MiB"
            typer.echo(f"messages: {number(found.messages)}, streams: {number(found.streams)}{used}")
    if not found.usable:
        raise typer.Exit(1)


@bus.command()
def dead(
    stream: Annotated[str | None, typer.Argument(help="Letters of this stream only.", metavar="STREAM")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show each message, and every try at it.")] = False,
    last: Annotated[int, typer.Option("--last", min=1, help="How many, the newest.")] = 50,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List messages that no try could deliver, with the reason."""
    from esper.services.oona.shown import letter_to_json

    found = _at(url, lambda desk: desk.letters(stream))
    shown = found[-last:]
    if as_json:
        typer.echo(
            json.dumps({"total": len(found), "letters": [letter_to_json(letter) for letter in shown]}, allow_nan=False)
        )
        return
    _print(_full(shown) if full else _listed(shown))
    if len(found) > len(shown):
        typer.echo(f"and {len(found) - len(shown):,} older: --last {len(found)}")


@bus.command()
def replay(
    stream: Annotated[str, typer.Argument(help="The stream that the messages came from.", metavar="STREAM")],
    ids: Ids = None,
    every: All = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Put dead messages back at the end of their stream, under their ids."""
    done = _each(url, stream, ids or [], every, lambda desk, letter: desk.replay(letter))
    _tell("replayed", "put back on", stream, done, as_json=as_json)


@bus.command()
def drop(
    stream: Annotated[str, typer.Argument(help="The stream that the messages came from.", metavar="STREAM")],
    ids: Ids = None,
    every: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Take dead messages away for good."""
    which = f"every dead letter of {stream}" if every else f"{len(ids or []):,} dead letters of {stream}"
    if not yes:
        _confirm(f"drop {which} for good?")
    done = _each(url, stream, ids or [], every, lambda desk, letter: desk.drop(letter))
    _tell("dropped", "dropped of", stream, done, as_json=as_json)


@bus.command()
def tail(
    stream: Annotated[str, typer.Argument(help="The stream.", metavar="STREAM")],
    last: Annotated[int, typer.Option("--last", min=0, help="Messages to begin with.")] = 10,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Go on with what comes.")] = True,
    full: Annotated[bool, typer.Option("--full", help="Do not cut lines at the width of the terminal.")] = False,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per message.")] = False,
) -> None:
    """Show messages as they pass, without being a member of any group."""
    from esper.services.oona.shown import passing_to_json

    width = None if full or not sys.stdout.isatty() else shutil.get_terminal_size().columns

    async def follow(desk: "Desk") -> None:
        async for passing in desk.follow(stream, last=last, wait=wait):
            line = json.dumps(passing_to_json(passing), allow_nan=False) if as_json else cut(_line(passing), width)
            typer.echo(line)
            sys.stdout.flush()

    try:
        _at(url, follow)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _at(url: str | None, act: "Callable[[Desk], Awaitable[Result]]") -> Result:
    """Do something at the desk of a bus, and leave it."""
    desk = _desk(url)

    async def work() -> Result:
        try:
            return await act(desk)
        finally:
            await desk.close()

    return asyncio.run(work())


def _desk(url: str | None) -> "Desk":
    from pathlib import Path

    from esper.services.oona.extra import check_redis

    if url is not None and "://" not in url:
        from esper.services.oona.journal_desk import JournalDesk

        return JournalDesk(Path(url))
    check_redis()
    from esper.services.oona.redis_config import RedisBusConfig
    from esper.services.oona.redis_desk import RedisDesk
    from esper.settings import load

    config = load(RedisBusConfig, "oona")
    return RedisDesk(config if url is None else config.model_copy(update={"url": url}))


def _each(
    url: str | None,
    stream: str,
    ids: list[str],
    every: bool,
    act: "Callable[[Desk, Letter], Awaitable[bool]]",
) -> list[str]:
    """Do something with each letter that was named, and return the ids of those that were still there."""
    from esper.services.oona.desk import check_choice, chosen

    check_choice(ids, every)

    async def work(desk: "Desk") -> list[str]:
        letters = await desk.letters(stream)
        letters = letters if every else chosen(letters, ids)
        return [letter.id for letter in letters if await act(desk, letter)]

    return _at(url, work)


def _confirm(question: str) -> None:
    from esper.errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError(
            "dropping was not confirmed", why="there is no terminal to ask on", todo="give --yes", code="ESP-2803"
        )
    typer.confirm(question, abort=True)


def _tell(name: str, phrase: str, stream: str, done: list[str], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"stream": stream, name: done}))
    else:
        typer.echo(f"{len(done):,} {'message' if len(done) == 1 else 'messages'} {phrase} {stream}")


def _rows_of(figures: "StreamFigures") -> list[tuple[str, ...]]:
    """Return a row for each group; what is said of the stream stands in the first."""
    about = (figures.stream, number(figures.held), number(figures.removed), number(figures.dead))
    groups = [
        (g.group, number(g.lag), number(g.pending), age(g.oldest_pending_s), number(g.redelivered), number(g.lost))
        for g in figures.groups
    ] or [(NOTHING,) * 6]
    return [(*(about if index == 0 else ("",) * 4), *group) for index, group in enumerate(groups)]


def _listed(letters: "list[Letter]") -> list[str]:
    if not letters:
        return ["there are no dead letters"]
    rows = [("ID", "STREAM", "GROUP", "TRIES", "BURIED", "WHY")]
    for letter in letters:
        content, stream = letter.content, letter.grave.rpartition(".")[0]
        when = NOTHING if letter.buried_at is None else f"{letter.buried_at:%Y-%m-%d %H:%M:%S}Z"
        if content is None:
            rows.append((letter.id, stream, NOTHING, NOTHING, when, cut(letter.fault, 80)))
        else:
            rows.append((letter.id, stream, content.group, str(content.tries), when, cut(content.reason, 80)))
    return lines_of(rows, right=(3,))


def _full(letters: "list[Letter]") -> list[str]:
    from esper.services.oona.shown import letter_to_json

    lines = []
    for letter in letters:
        told = letter_to_json(letter)
        width = max(map(len, told))
        lines += [
            f"{name:<{width}}  {value if isinstance(value, str) else json.dumps(value)}" for name, value in told.items()
        ]
        lines.append("")
    return lines or ["there are no dead letters"]


def _line(passing: "Passing") -> str:
    from esper.services.oona.shown import body_of

    envelope = passing.envelope
    if envelope is None:
        return f"{passing.place}  no message: {passing.fault}"
    told = [f"{envelope.sent_at:%H:%M:%S.%f}"[:12], envelope.type, envelope.run_id or NOTHING, envelope.id]
    return "  ".join([*told, json.dumps(body_of(envelope), ensure_ascii=False)])


def _print(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
