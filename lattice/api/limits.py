"""The limits on request bodies and on open streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lattice.api.errors import error_response, status_of
from lattice.errors import OverloadedError, TooLargeError


class BodyLimitMiddleware:
    """Refuses, with 413, bodies longer than `max_bytes`: at once where the length is declared, else
    when the limit is passed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        # Python reads no numbers of thousands of digits; twenty are too many bytes already.
        length = int(declared[:20]) if declared.isdecimal() else 0
        if length > self._max_bytes:
            await error_response(self._error(length))(scope, receive, send)
            return
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                error = self._error(received)
                # The one kind of error that FastAPI lets pass from the reading of a body.
                raise HTTPException(status_of(error), str(error))
            return message

        await self._app(scope, limited_receive, send)

    def _error(self, found: int) -> TooLargeError:
        return TooLargeError("max_body_bytes", found, self._max_bytes, "bytes")


class OpenStreams:
    """The streams of messages that this process has open, `most` at a time. Used from one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Counts one until the end of the block. Raises OverloadedError if it would be one too many."""
        if self._open >= self._most:
            raise OverloadedError("max_open_streams", self._open + 1, self._most, "streams")
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
