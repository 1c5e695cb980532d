"""Says with every answer what this service is, and refuses clients that it does not understand.

A request without the header comes from something that is no SDK, such as curl, and knows what it does.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lattice.api.errors import refuse
from lattice.api.probes import HEALTH
from lattice.errors import ProtocolRefusedError
from lattice.versions import OLDEST, PROTOCOL, PROTOCOL_HEADER, RELEASE_HEADER, own_headers, release


class VersionMiddleware:
    """Refuses, with 400, requests of a protocol that this release does not understand."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._own = own_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                MutableHeaders(scope=message).update(self._own)
            await send(message)

        error = None if scope["path"] in HEALTH else _refusal(Headers(scope=scope))
        if error is None:
            await self._app(scope, receive, send_with_headers)
        else:
            await refuse(error, scope, receive, send_with_headers)


def _refusal(headers: Headers) -> ProtocolRefusedError | None:
    protocol = headers.get(PROTOCOL_HEADER)
    if protocol is None:
        return None
    if protocol.isdecimal() and OLDEST <= int(protocol[:9]) <= PROTOCOL:
        return None
    return ProtocolRefusedError(
        headers.get(RELEASE_HEADER, "of an unknown release")[:50],
        protocol[:9],
        release(),
        PROTOCOL,
        OLDEST,
    )
