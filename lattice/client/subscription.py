"""Following a run's messages over a WebSocket, across lost connections.

The only module that knows the WebSocket library.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import CloseCode
from websockets.http11 import Response
from websockets.sync.client import ClientConnection, connect

from lattice.client.errors import ConnectionFailedError, DeadlineError, ServiceError
from lattice.client.transport import is_local
from lattice.versions import own_headers, user_agent

#: What a proxy in front of the service answers while it restarts, which knows no path then (404) or nobody who
#: answers. The service itself refuses with a close code, but for more connections than a key allows now (429).
_PASSING = (404, 429, 500, 502, 503, 504)

#: Close codes in the range for applications; the last three digits are an HTTP status.
_REFUSALS = range(4000, 5000)

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0


class LostError(Exception):
    """The connection is gone before the last message; following may go on with another."""


class ClosedError(LostError):
    """The connection was closed in order, as the service does it when there are no more messages."""


class Messages(Protocol):
    """An open connection."""

    def receive(self, timeout: float | None) -> str | bytes:
        """The next message, within `timeout` seconds.

        Raises:
            LostError: the connection is gone.
            ServiceError: the service will not tell.
            TimeoutError: nothing came in time.
        """


class _Socket:
    """`Messages` over a WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    def receive(self, timeout: float | None) -> str | bytes:
        try:
            return self._connection.recv(timeout)
        except ConnectionClosed as error:
            closing = error.rcvd
            if closing is not None and closing.code in _REFUSALS:
                raise ServiceError(closing.code - 4000, closing.reason) from error
            if closing is not None and closing.code == CloseCode.NORMAL_CLOSURE:
                raise ClosedError(str(error)) from error
            raise LostError(str(error)) from error


def open_socket(url: str, timeout: float) -> AbstractContextManager[Messages]:
    """`open_with` without headers."""
    return open_with({}, url, timeout)


@contextmanager
def open_with(headers: Mapping[str, str], url: str, timeout: float) -> Iterator[Messages]:
    """A connection to the WebSocket at `url`, opened with `headers` within `timeout` seconds.

    Raises:
        LostError: nobody answers, or not now.
        ServiceError: the service refuses.
    """
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(
                connect(
                    url,
                    open_timeout=timeout,
                    close_timeout=1,
                    additional_headers={**headers, **own_headers()},
                    max_size=None,  # results are bounded by the service
                    proxy=None if is_local(url) else True,
                    user_agent_header=user_agent(),
                )
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in _PASSING:
                raise LostError(f"status {status}") from error
            raise ServiceError(status, _detail(error.response)) from error
        except (OSError, WebSocketException) as error:
            raise LostError(str(error) or type(error).__name__) from error
        yield _Socket(connection)


def _detail(response: Response) -> str:
    """What a refusal says: the service's own words, or whatever a proxy has."""
    text = response.body.decode(errors="replace") if response.body else ""
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text or response.reason_phrase


#: Opens a connection to a WebSocket address within so many seconds.
Open = Callable[[str, float], AbstractContextManager[Messages]]


class Subscription:
    """The messages of a run at the WebSocket `url`, from after the message `after` until the last.

    `read` gives a message's number and whether it is the last. Iterating over `follow` gives each
    message once and in order, whatever becomes of single connections. After `patience` seconds without
    a connection it gives up. With `logs` there are messages with the number 0 too, which are handed on as
    they come: each new connection begins with all that there were.
    """

    def __init__(
        self,
        url: str,
        read: Callable[[str | bytes], tuple[int, bool]],
        patience: float,
        *,
        after: int = 0,
        logs: bool = False,
        open_socket: Open = open_socket,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url = url
        self._read = read
        self._patience = patience
        self._after = after
        self._logs = logs
        self._open = open_socket
        self._now = now
        self._pause = pause

    def follow(self, timeout: float | None = None) -> Iterator[str | bytes]:
        """The messages, all of them within `timeout` seconds; none where the run's last was before.

        Raises:
            DeadlineError: the last message did not come within `timeout`.
            ConnectionFailedError: the service cannot be reached any more.
            ServiceError: the service does not know the run.
        """
        end = None if timeout is None else self._now() + timeout
        start = self._after
        lost_at: float | None = None
        wait = _FIRST_PAUSE
        while True:
            worked_at: float | None = None
            try:
                with self._open(self._address(), self._within(end)) as socket:
                    worked_at = self._now()
                    for message in self._messages(socket, end):
                        lost_at, wait, worked_at = None, _FIRST_PAUSE, self._now()
                        seq, last = self._read(message)
                        if self._logs and seq == 0:
                            yield message
                            continue
                        if seq <= self._after:
                            continue
                        if seq > self._after + 1:
                            raise LostError(f"message {seq} came after message {self._after}")
                        self._after = seq
                        yield message
                        if last:
                            return
            except LostError as error:
                worked = worked_at is not None and self._now() - worked_at >= _LONGEST_PAUSE
                # Nothing was to come any more. It closes at once then; proxies close what has been silent for long.
                if isinstance(error, ClosedError) and not worked and self._after == start > 0:
                    return
                lost_at = self._now() if lost_at is None or worked else lost_at
                if self._now() + wait > lost_at + self._patience:
                    raise ConnectionFailedError(
                        self._url,
                        str(error),
                        "the run goes on if the service does; follow it again",
                    ) from error
            except TimeoutError as error:
                assert timeout is not None
                raise DeadlineError("the end of the run", timeout) from error
            if end is not None and self._now() + wait > end:
                assert timeout is not None
                raise DeadlineError("the end of the run", timeout)
            self._pause(wait)
            wait = min(wait * 2, _LONGEST_PAUSE)

    def _messages(self, socket: Messages, end: float | None) -> Iterator[str | bytes]:
        while True:
            yield socket.receive(None if end is None else max(end - self._now(), 0))

    def _within(self, end: float | None) -> float:
        """How long a connection may take to make, in seconds."""
        return self._patience if end is None else max(min(end - self._now(), self._patience), 0.001)

    def _address(self) -> str:
        return f"{self._url}?after={self._after}{'&logs=true' if self._logs else ''}"


def socket_url(url: str, path: str) -> str:
    """The WebSocket address of `path` below the HTTP address `url`."""
    parts = urlsplit(url)
    scheme = "wss" if parts.scheme == "https" else "ws"
    return urlunsplit((scheme, parts.netloc, parts.path + path, "", ""))
