"""HTTP/1.1 and WebSocket on a bare socket, so that every byte that is sent is ours.

What comes back is read strictly: an answer that is cut short or not HTTP is an error.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Self

#: Longest wait for an answer, in seconds: far beyond any time-out of the service, so that it shows a hang.
PATIENCE = 90.0


class NoAnswerError(Exception):
    """The connection was closed before an answer, or what came is no whole answer."""


class SilentError(Exception):
    """No answer came for `PATIENCE` seconds."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; of a stream, what was read of it."""

    status: int
    headers: dict[str, str]
    body: bytes
    #: Close code of a WebSocket, None if the client left first.
    closed: int | None = None
    messages: list[bytes] = field(default_factory=list)


class Connection:
    """One connection, made again when it is needed and was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._file: BufferedReader | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it at once, also in the middle of an answer."""
        if self._socket is not None and self._file is not None:
            self._file.close()
            self._socket.close()
        self._socket = self._file = None

    def exchange(self, data: bytes, *, head: bool = False, stream: float | None = None) -> Answer:
        """Sends `data` and reads the answer; of a stream, what comes in `stream` seconds.

        Raises:
            NoAnswerError, SilentError: there was none.
        """
        fresh = self._socket is None
        try:
            try:
                return self._exchange(data, head, stream)
            except NoAnswerError:
                if fresh:
                    raise
            # A server may close an idle connection at any moment.
            self.close()
            return self._exchange(data, head, stream)
        except BaseException:
            self.close()
            raise

    def send_and_leave(self, data: bytes) -> None:
        """Sends `data` on a connection of its own and closes that without waiting for anything."""
        self.close()
        try:
            self._send(data)
        except OSError:
            pass
        finally:
            self.close()

    def _send(self, data: bytes) -> BufferedReader:
        if self._socket is None or self._file is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._file = self._socket.makefile("rb")
        self._socket.settimeout(PATIENCE)
        self._socket.sendall(data)
        return self._file

    def _exchange(self, data: bytes, head: bool, stream: float | None) -> Answer:
        try:
            try:
                file = self._send(data)
            except (BrokenPipeError, ConnectionResetError):
                # A server that has refused a long body does not read its end; the answer may be there.
                if self._file is None:
                    raise
                file = self._file
            status, headers = self._head(file)
            if status == 101:
                return self._websocket(file, headers, stream or 0.0)
            if stream is not None and "content-length" not in headers and status == 200:
                answer = Answer(status, headers, self._some(file, stream))
                self.close()
                return answer
            body = b"" if head or status in (204, 304) else self._body(file, headers)
            if headers.get("connection", "").lower() == "close":
                self.close()
            return Answer(status, headers, body)
        except TimeoutError as error:
            raise SilentError from error
        except (OSError, ValueError) as error:
            raise NoAnswerError(repr(error)) from error

    def _head(self, file: BufferedReader) -> tuple[int, dict[str, str]]:
        while True:
            first = _line(file)
            if not first.startswith(b"HTTP/1."):
                raise NoAnswerError(f"no status line: {first[:100]!r}")
            status = int(first.split(b" ", 2)[1])
            headers = {}
            while line := _line(file):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            if status != 100:
                return status, headers

    def _body(self, file: BufferedReader, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int(_line(file).split(b";")[0], 16):
                body += _exactly(file, size)
                _line(file)
            _line(file)
            return body
        if "content-length" in headers:
            return _exactly(file, int(headers["content-length"]))
        body = file.read()
        self.close()
        return body

    def _some(self, file: BufferedReader, seconds: float) -> bytes:
        assert self._socket is not None
        self._socket.settimeout(seconds)
        found = b""
        try:
            while part := file.read1(65_536):
                found += part
                if len(found) > 1_000_000 or found.endswith(b"\r\n0\r\n\r\n"):
                    break
        except OSError:
            pass
        return found

    def _websocket(self, file: BufferedReader, headers: dict[str, str], seconds: float) -> Answer:
        """Frames until the other end closes, or until it says nothing for `seconds`."""
        assert self._socket is not None
        self._socket.settimeout(seconds)
        messages: list[bytes] = []
        closed: int | None = None
        try:
            while len(messages) < 10_000:
                first, second = _exactly(file, 2)
                length = second & 127
                if length > 125:
                    size, form = (2, "!H") if length == 126 else (8, "!Q")
                    (length,) = struct.unpack(form, _exactly(file, size))
                payload = _exactly(file, length)
                if first & 15 == 8:
                    closed = struct.unpack("!H", payload[:2])[0] if payload else 1005
                    break
                if first & 15 == 1:
                    messages.append(payload)
        except (OSError, NoAnswerError):
            pass
        self.close()
        return Answer(101, headers, b"", closed, messages)


def _line(file: BufferedReader) -> bytes:
    line = file.readline(70_000)
    if not line.endswith(b"\n"):
        raise NoAnswerError(f"closed within the head of an answer: {line[:100]!r}")
    return line.rstrip(b"\r\n")


def _exactly(file: BufferedReader, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise NoAnswerError(f"closed after {len(data)} of {size} bytes")
    return data


#: Any will do; a random one would make each request another each time.
_MASK = b"\x12\x34\x56\x78"


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A WebSocket frame as clients send it, masked."""
    mask = _MASK
    length = len(payload)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 65_536:
        size = bytes([0x80 | 126]) + struct.pack("!H", length)
    else:
        size = bytes([0x80 | 127]) + struct.pack("!Q", length)
    key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    masked = (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big")
    return bytes([opcode | (0x80 if final else 0)]) + size + mask + masked
