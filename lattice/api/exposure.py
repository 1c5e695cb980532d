"""Keeps a service without API keys to its own machine, as it runs code for whoever reaches it.

Serve's composition root knows where the service will listen, and asks `check_host` before it starts. A server such
as uvicorn does not tell an application; there, what comes in over an address that other machines reach is refused,
request by request.
"""

from __future__ import annotations

import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from lattice.api.errors import refuse
from lattice.api.probes import HEALTH
from lattice.errors import ExposedError, InvalidRequestError
from lattice.settings import LatticeSettings

_WAYS_OUT = (
    "API keys are needed there (setting api_keys; `lattice key NAME` makes one). Else listen on 127.0.0.1; or, where "
    "everybody in the network may run code here, set allow_unauthenticated_network_access: true"
)


def may_be_anywhere(settings: LatticeSettings) -> bool:
    """Whether the service may listen on any address."""
    return bool(settings.api_keys) or settings.allow_unauthenticated_network_access


def check_host(settings: LatticeSettings, host: str) -> None:
    """Raises InvalidRequestError for a `host` to listen on that other machines reach, if that is not safe."""
    if not may_be_anywhere(settings) and not _is_local(host):
        raise InvalidRequestError("http_options.host", f"{host!r} without API keys", _WAYS_OUT)


class LocalOnlyMiddleware:
    """Refuses, with 403, what comes in over an address that other machines reach."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A Unix socket has a path and no port. Names are of test clients, which have no address.
        address, port = scope.get("server") or ("", None)
        over_network = port is not None and _is_address(address) and not _is_local(address)
        if over_network and scope["path"] not in HEALTH:
            await refuse(ExposedError(address, _WAYS_OUT), scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    name = host.removeprefix("[").removesuffix("]")
    if not _is_address(name):
        return name.lower() == "localhost"
    address = ipaddress.ip_address(name)
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
