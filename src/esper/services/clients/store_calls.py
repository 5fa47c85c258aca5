"""How the store is asked over HTTP."""

from typing import TypeVar
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from esper.contracts.store import LineageEntry
from esper.contracts.store_calls import stated
from esper.errors import NotFound
from esper.services.clients.messages import Reply, Request, unexpected
from esper.services.clients.transport import Transport

Item = TypeVar("Item", bound=BaseModel)
API = "/api/v1"


class StoreCalls:
    """What every part of a client of the store does.

    Attributes:
        transport: Makes the calls.
    """

    transport: Transport

    async def _got(self, path: str, query: BaseModel | None = None) -> Reply:
        return await self.transport.call(Request("GET", API + path, query={} if query is None else _query(query)))

    async def _sent(self, method: str, path: str, body: BaseModel) -> Reply:
        headers = {"Content-Type": "application/json"}
        with stated():
            data = body.model_dump_json().encode()
        return await self.transport.call(Request(method, API + path, body=data, headers=headers))

    async def _line(self, path: str, **query: str) -> list[LineageEntry]:
        """Return a line of blueprints, as the store in process does: nothing where it has no beginning."""
        try:
            return items(await self.transport.call(Request("GET", API + path, query=query)), LineageEntry)
        except NotFound:
            return []

    async def _posted(self, path: str, body: BaseModel, kind: type[Item]) -> Item:
        return (await self._sent("POST", path, body)).read_as(kind)


def part(name: str) -> str:
    """Quote one part of a path, so that no name leads elsewhere."""
    return quote(name, safe=":")


def _query(model: BaseModel) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {}
    for name, value in model.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, list):
            found[name] = [str(item) for item in value]
        else:
            found[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return found


def items(reply: Reply, kind: type[Item]) -> list[Item]:
    """Return the records of an answer that is a list."""
    try:
        return TypeAdapter(list[kind]).validate_json(reply.body)  # type: ignore[valid-type]
    except ValidationError as error:
        raise unexpected(f"no list of {kind.__name__}") from error


def next_cursor(reply: Reply) -> str | None:
    """Return the cursor of the next page from the Link header."""
    target = reply.headers.get("Link", "").partition(">")[0].removeprefix("<")
    return parse_qs(urlsplit(target).query).get("cursor", [None])[0] if target else None


__all__ = ["API", "StoreCalls", "items", "next_cursor", "part"]
