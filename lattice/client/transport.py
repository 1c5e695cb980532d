"""How requests get to a service. The only module that knows the HTTP library."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import httpx
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lattice.versions import own_headers, user_agent

#: Idle connections are given up before the service does so (after five seconds), as a request that
#: meets a closing connection fails without anyone knowing whether it was taken.
_KEEP_ALIVE = 2.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` may have a query; `body` is JSON text."""

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """What came back. Names of headers are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class NotSentError(Exception):
    """No connection was made, so the service has seen nothing of the request."""


class BrokenOffError(Exception):
    """The connection broke; whether the service has acted is not known."""


class TimedOutError(Exception):
    """No answer in time; whether the service has acted is not known."""


class Transport(Protocol):
    """Carries requests to one service. Used from any thread."""

    def send(self, request: Request, timeout: float | None) -> Response:
        """The service's answer, whatever its status, within `timeout` seconds (None: however long).

        Raises:
            NotSentError, BrokenOffError, TimedOutError
        """

    def close(self) -> None:
        """Closes connections. The transport is not used afterwards."""


_trace_context = TraceContextTextMapPropagator()

#: A connection is made in this many seconds or not at all, however long the answer may take.
_CONNECT = 30.0


class HttpTransport:
    """Carries requests over HTTP to the service at `url`, with connections that are kept for a while.

    `carrier` replaces the network below HTTP, for tests.
    """

    def __init__(self, url: str, carrier: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={"user-agent": user_agent(), **own_headers()},
            transport=carrier,
            # A proxy for the world outside is never the way to this machine.
            trust_env=not is_local(url),
            verify=urlsplit(url).scheme == "https",
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=50, keepalive_expiry=_KEEP_ALIVE
            ),
        )
        # A script that forgets to close its client ends without complaints about open sockets.
        weakref.finalize(self, self._http.close)

    def send(self, request: Request, timeout: float | None) -> Response:
        headers = dict(request.headers)
        # What is asked inside a span of the user's program belongs to its trace.
        _trace_context.inject(headers)
        if request.body is not None:
            headers["content-type"] = "application/json"
        connect = _CONNECT if timeout is None else min(timeout, _CONNECT)
        try:
            response = self._http.request(
                request.method,
                request.path,
                content=request.body,
                headers=headers,
                timeout=httpx.Timeout(timeout, connect=connect),
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotSentError(_words(error)) from error
        except httpx.TimeoutException as error:
            raise TimedOutError(_words(error)) from error
        except httpx.TransportError as error:
            raise BrokenOffError(_words(error)) from error
        return Response(response.status_code, response.content, dict(response.headers))

    def close(self) -> None:
        self._http.close()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def is_local(url: str) -> bool:
    """Whether `url` is on this machine."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
