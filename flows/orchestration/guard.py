"""What a request must look like before a server of this project answers it.

A server on loopback is reached by every page that a browser of this machine shows. Such a page can send
requests there, and can have its own name resolve to 127.0.0.1 (DNS rebinding), but it cannot choose the
headers Host and Origin. The guard accepts what names the server itself in both, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutline.flows.orchestration.password import CHALLENGE, PROOF, proof_of

# No other page may show this one in a frame, where it could guide the user's clicks.
FRAMES = {"X-Frame-Options": "DENY", "Content-Security-Policy": "frame-ancestors 'none'"}


class Guard:
    """An ASGI middleware that refuses a foreign Host, a foreign Origin, and a body that is not JSON."""

    def __init__(self, app: ASGIApp, origins: Iterable[str] = (), secret: str | None = None) -> None:
        """`origins` are the addresses (scheme, host and port) under which the server is reached, beside
        localhost and the address that a connection comes in at. With a `secret` it answers challenges.
        """
        self.app = app
        self.origins = frozenset(origin.strip().rstrip("/").lower() for origin in origins) - {"*", ""}
        self.hosts = frozenset(filter(None, map(_hostname, self.origins)))
        self.secret = secret

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        if refused and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in FRAMES.items():
                    answer.setdefault(name, value)
                if self.secret and (challenge := headers.get(CHALLENGE)):
                    answer[PROOF] = proof_of(self.secret, challenge, scope["server"][1])
            await send(message)

        if refused:
            code, reason = refused
            await JSONResponse({"exception_message": reason}, code)(scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)

    def _refused(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and reason where a request is refused, else None."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or not self._is_own(hosts[0], scope):
            return 400, "Host: expected the address of this server, found another name"
        if len(origins) > 1 or any(not self._is_same(origin, hosts[0]) for origin in origins):
            return 403, "Origin: expected a page of this server, found a page of another one"
        is_link = headers.get("sec-fetch-mode") == "navigate"
        if not origins and not is_link and headers.get("sec-fetch-site") == "cross-site":
            return 403, "Sec-Fetch-Site: expected a page of this server, found a page of another one"
        if scope["type"] == "http" and _has_body(headers) and not _is_json(headers):
            return 415, "Content-Type: expected application/json for a request with a body, found another"
        return None

    def _is_own(self, host: str, scope: Scope) -> bool:
        name = _hostname(f"//{host}")
        reached_at = (scope.get("server") or ("",))[0]
        return name is not None and (name in ("localhost", reached_at) or name in self.hosts)

    def _is_same(self, origin: str, host: str) -> bool:
        origin = origin.lower()
        return origin in self.origins or origin in (f"http://{host.lower()}", f"https://{host.lower()}")


def _hostname(url: str) -> str | None:
    """The host that a URL or `//HOST:PORT` names, in small letters; None for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    is_plain = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    return parts.hostname if is_plain else None


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _is_json(headers: Headers) -> bool:
    kinds = headers.getlist("content-type")
    return len(kinds) == 1 and kinds[0].partition(";")[0].strip().lower() == "application/json"
