"""The dashboard's server: which address shows what, and what no request may do.

It answers GET from this machine only, to its own names and pages only
(`cutline.flows.orchestration.guard`), runs no script, and takes ids and numbers, never a path. It asks for
no password: every user of this machine can read it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from jinja2 import Environment
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutline.flows.dashboard import images, views
from cutline.flows.dashboard.views import Views, WrongQuery
from cutline.flows.orchestration.guard import Guard
from cutline.schemas.errors import CutlineError, UsageError
from cutline.tasks.report.html import environment
from cutline.tasks.report.photo_files import Pictures
from cutline.tasks.storage.runs import History
from cutline.tasks.storage.workspace import ReadOnlyWorkspace

LOOPBACK = "127.0.0.1"
HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def make_app(workspace: Path) -> Starlette:
    """The dashboard of a workspace, which need not exist yet, as an ASGI application."""
    history = History(ReadOnlyWorkspace(workspace))
    pictures = Pictures(history)
    templates = environment(HERE / "templates")
    templates.filters |= views.FILTERS
    templates.tests |= views.TESTS
    templates.globals["workspace"] = history.workspace.where
    pages, shown = Pages(templates), Views(history, pictures)
    files = {"/style.css": "text/css", "/icon.svg": "image/svg+xml"}
    shows = {
        "/": shown.overview,
        "/datasets": shown.dataset,
        "/rejects": shown.rejects,
        "/runs": shown.runs,
        "/runs/{run}": shown.run,
        "/compare": shown.compare,
        "/changes": shown.changes,
        "/captions": shown.captions,
        "/search": shown.search,
        "/photos/{run}/{photo_id}": shown.photo,
        "/curves": shown.curves,
        "/stale": shown.stale,
        "/disk": shown.disk,
    }
    routes = [
        *(Route(path, pages.page(view)) for path, view in shows.items()),
        Route("/pictures/{run}/{photo_id}/{size}", images.photo(history, pictures)),
        Route("/rejected/{run}/{row:int}", images.rejected(history, pictures)),
        Route("/drawn/{run}/{stage}", images.curve(history)),
        *(Route(path, still((HERE / path[1:]).read_bytes(), kind)) for path, kind in files.items()),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard), Middleware(Headed)],
        exception_handlers={HTTPException: pages.refused, 500: pages.failed},
    )
    app.router.redirect_slashes = False  # an address is there or is not
    return app


@dataclass(frozen=True)
class Pages:
    """Answers in HTML, those that tell of a problem too."""

    templates: Environment

    def page(self, view: Callable[[Request], dict[str, Any]]) -> Callable[[Request], Response]:
        """Answers with what `view` finds for the request, shown by the template of its name."""

        def answer(request: Request) -> Response:
            try:
                return self._render(view.__name__, view(request))
            except WrongQuery as error:
                return self._problem(400, str(error))
            except CutlineError as error:
                return self._problem(200, str(error))  # the page is there, what it would show is not

        return answer

    def refused(self, _: Request, error: Exception) -> Response:
        """A page for an HTTPException, of its code: its own words, ours for an address that is not there."""
        assert isinstance(error, HTTPException)
        known = {404: "there is no such page", 405: "this page only shows: it answers GET and nothing else"}
        is_plain = error.detail == HTTPException(error.status_code).detail
        text = known.get(error.status_code, error.detail) if is_plain else error.detail
        return self._problem(error.status_code, text)

    def failed(self, _: Request, error: Exception) -> Response:
        """A page of code 500 for any other error, which says its kind and nothing of what it holds."""
        kind = type(error).__name__
        return self._problem(500, f"{kind}: an error of the dashboard itself; its terminal says more")

    def _problem(self, code: int, text: str) -> Response:
        return self._render("problem", {"here": "", "code": code, "text": text}, code)

    def _render(self, template: str, context: dict[str, Any], code: int = 200) -> Response:
        return HTMLResponse(self.templates.get_template(f"{template}.html.j2").render(context).encode(), code)


def still(content: bytes, media_type: str) -> Callable[[Request], Response]:
    """Answers with a file of the dashboard itself."""
    return lambda _: Response(content, media_type=media_type, headers=images.DRAWING)


class Headed:
    """Puts the headers of `HEADERS` on every answer that does not have its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, headed)


def serve(workspace: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve the dashboard on this machine's loopback until interrupted.

    `ready` gets the address once it answers; port 0 takes a free one. Raises UsageError where the port
    is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"port {port} cannot be had on {LOOPBACK} ({error}); --port 0 takes a free one"
            ) from None
        listener.listen()
        ready(f"http://{LOOPBACK}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(
            make_app(workspace),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
        )
        uvicorn.Server(config).run(sockets=[listener])
