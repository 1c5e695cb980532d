"""Who is asking: API keys on requests and WebSockets, and what each may do.

A key comes as `Authorization: Bearer KEY`. A browser cannot set headers of a WebSocket, so there it may come as
a subprotocol: `new WebSocket(url, ["lattice", "lattice.bearer.KEY"])`. In the address it is never looked for, as
addresses get into logs. Behind this middleware nobody sees the key: it is taken out of the headers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lattice.api.errors import refuse
from lattice.api.probes import PROBES
from lattice.errors import TooManyRequestsError, UnauthorizedError
from lattice.ids import Tenant
from lattice.keys import ApiKey, KeyRing
from lattice.ports.service import ANYBODY, Caller

#: The subprotocol that is agreed on, and what the one begins with that carries a key.
PROTOCOL = "lattice"
_BEARER_PROTOCOL = "lattice.bearer."

_CALLER = "lattice.caller"

#: No tenant has this name.
_NOBODY = Caller(Tenant(""), admin=False)

_NO_KEY = (
    "an API key is needed: send `Authorization: Bearer KEY` (the SDK takes it from LATTICE_API_KEY), or open the "
    f"WebSocket with the subprotocols `{PROTOCOL}` and `{_BEARER_PROTOCOL}KEY`; whoever runs the service makes "
    "keys with `lattice key NAME`"
)


class KeyMiddleware:
    """Refuses requests without a key (401) and beyond the tenant's rate (429), and notes who asks.

    Args:
        app: what is behind it.
        keys: who may ask. Without keys, everybody may do everything.
        processes: how many processes answer for the service; each allows its share of a rate.
        monotonic: seconds, for rates.
        now: the time, for expiry.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Iterable[ApiKey],
        processes: int = 1,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        keys = tuple(keys)
        self._app = app
        self._ring = KeyRing(keys)
        self._now = now
        self._rates = {
            key.name: _Rate(key.name, key.requests_per_second, processes, monotonic)
            for key in keys
            if key.requests_per_second is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = _take_key(scope)
        try:
            scope[_CALLER] = self._caller(given, scope["path"])
        except (UnauthorizedError, TooManyRequestsError) as error:
            await refuse(error, scope, receive, send)
            return
        if PROTOCOL in scope.get("subprotocols", ()):
            # A browser closes a connection whose server agrees to none of what it offered.
            send = _agreeing(send)
        await self._app(scope, receive, send)

    def _caller(self, given: str | None, path: str) -> Caller:
        if not self._ring:
            return ANYBODY
        if path in PROBES:
            # They reveal nothing and do nothing for anybody.
            return _NOBODY
        if given is None:
            raise UnauthorizedError(_NO_KEY)
        key = self._ring.find(given, self._now())
        if key.name in self._rates:
            self._rates[key.name].take()
        return Caller(Tenant(key.name), admin=key.admin)


class _Rate:
    """A bucket that holds a second's worth of requests, and fills evenly."""

    def __init__(
        self, tenant: str, per_second: float, processes: int, now: Callable[[], float]
    ) -> None:
        self._tenant = tenant
        self._allowed = per_second
        self._per_second = per_second / processes
        self._room = max(1.0, self._per_second)
        self._left = self._room
        self._now = now
        self._at = now()

    def take(self) -> None:
        """Takes one. Raises TooManyRequestsError if there is none."""
        now = self._now()
        self._left = min(self._room, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            wait = (1 - self._left) / self._per_second
            raise TooManyRequestsError(self._tenant, self._allowed, wait)
        self._left -= 1


def _take_key(scope: Scope) -> str | None:
    """The key that a request carries, which it carries no more."""
    authorization = b""
    kept = []
    # In one pass, as every request goes through here.
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = authorization or value
        elif name != b"sec-websocket-protocol":
            kept.append((name, value))
    scope["headers"] = kept
    scheme, _, found = authorization.decode("latin-1").partition(" ")
    given = found.strip() if scheme.lower() == "bearer" and found.strip() else None
    offered = scope.get("subprotocols", ())
    if given is None:
        carried = (name for name in offered if name.startswith(_BEARER_PROTOCOL))
        given = next((name.removeprefix(_BEARER_PROTOCOL) for name in carried), None)
    if offered:
        scope["subprotocols"] = [name for name in offered if not name.startswith(_BEARER_PROTOCOL)]
    return given


def _agreeing(send: Send) -> Send:
    async def agree(message: Message) -> None:
        if message["type"] == "websocket.accept":
            message = {**message, "subprotocol": PROTOCOL}
        await send(message)

    return agree


def describe(app: FastAPI) -> None:
    """Has the app's OpenAPI document say that requests need a key."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["api_key"] = {"type": "http", "scheme": "bearer"}
        document["security"] = [{"api_key": []}]
        for path in PROBES:
            document["paths"][path]["get"]["security"] = []
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # how FastAPI has it changed


# -- dependencies ------------------------------------------------------------------------------


async def caller(connection: HTTPConnection) -> Caller:
    """Who asks."""
    found = connection.scope[_CALLER]
    assert isinstance(found, Caller)
    return found


RequestCaller = Annotated[Caller, Depends(caller)]


async def operators_only(caller: RequestCaller) -> None:
    """Raises AdminOnlyError for a tenant without `admin`."""
    caller.check_operator()
