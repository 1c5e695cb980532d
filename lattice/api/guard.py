"""Keeps pages of other sites away from a service that runs code for whoever reaches it.

A page anywhere can make its visitor's browser send requests to the visitor's own machine, also under
a name that the page's owner lets point there. The browser says so in `Host`, `Origin` and
`Sec-Fetch-Site`; programs are not browsers and send the name they were given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lattice.api.errors import refuse
from lattice.api.probes import HEALTH
from lattice.errors import ForbiddenError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(:\d+)?")


class GuardMiddleware:
    """Refuses, with 403, requests for a host, or from a page of a host, that is not allowed.

    Args:
        app: what is guarded.
        allowed_hosts: host names without port, IPv6 addresses with or without brackets. `*` lets
            everything pass.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        self._app = app
        self._allowed = frozenset(_normal(host) for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None
        if scope["type"] in ("http", "websocket") and scope["path"] not in HEALTH:
            error = self._refusal(Headers(scope=scope))
        if error is None:
            await self._app(scope, receive, send)
        else:
            await refuse(error, scope, receive, send)

    def _refusal(self, headers: Headers) -> ForbiddenError | None:
        if "*" in self._allowed:
            return None
        for host in headers.getlist("host") or [""]:
            if _host_name(host) not in self._allowed:
                return ForbiddenError("Host", host)
        origins = headers.getlist("origin")
        for origin in origins:
            if _origin_name(origin) not in self._allowed:
                return ForbiddenError("Origin", origin)
        site = headers.get("sec-fetch-site", "")
        # An allowed page of another host is a cross-site page too; the browser then names it.
        if site.lower() == "cross-site" and not origins:
            return ForbiddenError("Sec-Fetch-Site", site)
        return None


def _normal(host: str) -> str:
    return host.strip().lower().removeprefix("[").removesuffix("]")


def _host_name(value: str) -> str | None:
    match = _HOST.fullmatch(value)
    return _normal(match[1]) if match else None


def _origin_name(value: str) -> str | None:
    try:
        # None for `null`, which is what the browser says of a sandboxed page or a file.
        return urlsplit(value).hostname
    except ValueError:
        return None
