"""The two forms in which a run's messages are sent as they come: WebSocket and server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from lattice.api.errors import INTERNAL_DETAIL, close_of
from lattice.api.following import Group, StreamPolicy, run_while
from lattice.api.limits import OpenStreams
from lattice.errors import LatticeError, UnavailableError

_logger = logging.getLogger(__name__)

#: Makes a new stream of a run's messages.
Follow = Callable[[], AsyncGenerator[Group, None]]


# -- WebSocket ---------------------------------------------------------------------------------


async def send_over_websocket(
    websocket: WebSocket, follow: Follow, open_streams: OpenStreams
) -> None:
    """Accepts, sends each message as a text frame, and closes: 1000 after the last, else as the error
    says, which may be that too many are open. A client that leaves ends it at once."""
    await websocket.accept()
    # A client that leaves while something is being sent to it shows as a disconnect, too.
    with suppress(WebSocketDisconnect):
        try:
            with open_streams.one_more():
                done = await run_while(_send_frames(websocket, follow), _left(websocket))
            if done:
                await _unless_closed(websocket.close(1000))
        except WebSocketDisconnect:
            raise
        except Exception as error:
            if not isinstance(error, LatticeError):
                _logger.error("%s failed", websocket.url.path, exc_info=error)
            await _unless_closed(websocket.close(*close_of(error)))


async def _send_frames(websocket: WebSocket, follow: Follow) -> None:
    async with aclosing(follow()) as groups:
        async for group in groups:
            for _, text in group:
                await _unless_closed(websocket.send_text(text))


async def _unless_closed(sending: Awaitable[None]) -> None:
    """Sends. Raises WebSocketDisconnect where the client has left, or the server has closed the connection.

    The server does so by itself when a client breaks the protocol, or is silent for too long. Until the connection
    is gone it takes what is sent for a mistake of the application, which may not have heard of it yet.
    """
    try:
        await sending
    except RuntimeError as error:
        raise WebSocketDisconnect(1006) from error


async def _left(websocket: WebSocket) -> None:
    """Returns when the client has gone; what it says before is not of interest."""
    while (await websocket.receive())["type"] != "websocket.disconnect":
        pass


# -- server-sent events ------------------------------------------------------------------------


class EventStreamResponse(Response):
    """A run's messages as server-sent events whose `id` is the message's number.

    A stream that has nothing to send is answered 204, which tells a browser's EventSource not to
    connect again. An error before the first message is answered like that of any request; one that
    comes later is sent as an event named `error`, after which the client may resume.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        follow: Follow,
        policy: StreamPolicy,
        stopping: asyncio.Event,
        open_streams: OpenStreams,
    ) -> None:
        # Proxies that collect a response before they pass it on would hold the events back.
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._follow = follow
        self._policy = policy
        self._stopping = stopping
        self._open_streams = open_streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._open_streams.one_more():
            await self._stream(receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        writer = _EventWriter(self.raw_headers, send)
        work = self._send_events(writer)
        try:
            done = await run_while(work, _disconnected(receive), self._stopping.wait())
        except Exception as error:
            if not writer.started:
                raise
            await writer.error(error)
            done = True
        if self._stopping.is_set() and not writer.started:
            raise UnavailableError("the service is stopping")
        if done or self._stopping.is_set():
            await writer.end()

    async def _send_events(self, writer: _EventWriter) -> None:
        async with (
            aclosing(self._follow()) as messages,
            aclosing(_with_pauses(messages, self._policy)) as groups,
        ):
            async for group in groups:
                await writer.write(group)


async def _with_pauses(
    groups: AsyncGenerator[Group, None], policy: StreamPolicy
) -> AsyncGenerator[Group, None]:
    """Passes `groups` on; silence becomes an empty group, the first one early to open the response."""
    pause = policy.opening
    step: asyncio.Future[Group] | None = None
    try:
        while True:
            step = step or asyncio.ensure_future(anext(groups))
            await asyncio.wait([step], timeout=pause)
            pause = policy.heartbeat
            if not step.done():
                yield []
                continue
            try:
                group = step.result()
            except StopAsyncIteration:
                return
            step = None
            yield group
    finally:
        if step is not None:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)


class _EventWriter:
    """Writes events to one HTTP response, which starts with the first."""

    def __init__(self, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        self._headers = headers
        self._send = send
        self.started = False

    async def write(self, group: Group) -> None:
        """Sends the messages, or a comment where there are none."""
        events = "".join(
            f"data: {text}\n\n" if seq is None else f"id: {seq}\ndata: {text}\n\n"
            for seq, text in group
        )
        await self._write(events or ": waiting\n\n")

    async def error(self, error: Exception) -> None:
        """Sends what ended the stream."""
        if not isinstance(error, LatticeError):
            _logger.error("a stream of events failed", exc_info=error)
        detail = str(error) if isinstance(error, LatticeError) else INTERNAL_DETAIL
        await self._write(f"event: error\ndata: {json.dumps({'detail': detail})}\n\n")

    async def end(self) -> None:
        """Completes the response: 204 if nothing was sent."""
        if not self.started:
            await self._send({"type": "http.response.start", "status": 204, "headers": []})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, text: str) -> None:
        if not self.started:
            self.started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": self._headers}
            )
        body = text.encode("utf-8", "backslashreplace")
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
