"""An application: endpoints, gate, errors, and the parts behind them while it runs."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from esper import __version__
from esper.errors import EsperError
from esper.services.rest.answers import on_esper_error, on_http_error, on_invalid
from esper.services.rest.description import described
from esper.services.rest.direct import DirectRoutes
from esper.services.rest.gate import Gate, Rules
from esper.services.rest.state import Parts


@dataclass(frozen=True)
class Described:
    """What a service says of itself.

    Attributes:
        title: Its name.
        about: What it does.
        idempotent: Whether it answers an idempotency key as the first time.
    """

    title: str
    about: str
    idempotent: bool = False


class Application(FastAPI):
    """The framework behind a gate, and the endpoints that are asked most behind another.

    Args:
        rules: What is asked of the gates.
        options: Those of the framework.
    """

    def __init__(self, rules: Callable[[Parts], Rules], **options: Any) -> None:
        super().__init__(**options)
        self._direct = DirectRoutes(self)
        self._short = Gate(self._direct.answer, self, rules)
        self.add_middleware(Gate, service=self, rules=rules)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or open and close the parts."""
        way = self._short if self._direct.found(scope) else super().__call__
        await way(scope, receive, send)


def application(
    described_as: Described,
    routers: tuple[APIRouter, ...],
    serving: Callable[[], AbstractAsyncContextManager[Parts]],
    rules: Callable[[Parts], Rules] = lambda _: Rules(),
) -> FastAPI:
    """Make an application.

    Args:
        described_as: What it says of itself.
        routers: Its endpoints.
        serving: Opens its parts, and closes them in the end.
        rules: What it asks of its gate.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with serving() as parts:
            app.state.serving = parts
            try:
                yield
            finally:
                app.state.serving = None

    app = Application(
        rules, title=described_as.title, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.router.redirect_slashes = False
    for router in routers:
        app.router.routes.extend(router.routes)
    app.add_exception_handler(EsperError, on_esper_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.openapi = partial(_described_once, app, described_as)  # type: ignore[method-assign]
    return app


def _described_once(app: FastAPI, told: Described) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = described(app, told.about, idempotent=told.idempotent)
    return app.openapi_schema
