"""Request headers that the engine reads before our application sees a request.

Serve decodes `X-Request-ID` and others as UTF-8 and answers 500 where they are not; HTTP says nothing of
the kind about their bytes. With other headers a client can steer Serve: give up a request, with a time-out
of its own or one that no timer holds (500), or let it go on when the client has left. None of these is of
our API. Serve puts what `middlewares` gives around its own handling of a request, if an environment
variable of the ingress's process names it.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

#: Tells Serve of `middlewares`.
ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.engine_headers:middlewares"
}

#: By which a client would steer the engine, in lower case and with `-` for `_`.
_STEERING = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
    }
)


def middlewares() -> list[Middleware]:
    """What Serve is to put around its own handling of a request."""
    return [Middleware(EngineHeadersMiddleware)]


class EngineHeadersMiddleware:
    """Leaves out headers that steer the engine, and writes values that are not UTF-8 anew in it.

    Their bytes are taken for Latin-1, in which each means something. The application allows no such value
    in any header that it reads, before or after.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "headers" in scope:
            scope["headers"] = [
                (name, value if value.isascii() else _as_utf8(value))
                for name, value in scope["headers"]
                if name.lower().replace(b"_", b"-") not in _STEERING
            ]
        await self._app(scope, receive, send)


def _as_utf8(value: bytes) -> bytes:
    try:
        value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1").encode()
    return value
