"""What is sent and what may come back: a request in bytes, and the plan of a good one that hostile ones are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.fuzz.hostile import json_text


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, and what may come back.

    Attributes:
        kind: for people.
        operation: method and path template of the OpenAPI document; "" where no operation may be hit.
        data: the bytes.
        proxy: the HTTP itself is broken, so that the proxy or the server may refuse it, in words of its own.
        leaves: the client does not wait for an answer.
        stream: the answer may be a stream, of which so many seconds are read.
        learns, slot, place, sent: what the pool learns from a success.
    """

    kind: str
    operation: str
    data: bytes
    proxy: bool = False
    leaves: bool = False
    stream: float | None = None
    learns: str = ""
    slot: int = 0
    place: int = 0
    sent: str = ""

    @property
    def method(self) -> str:
        return self.data.split(b" ", 1)[0].decode("latin-1")


#: A header's name and value.
Header = tuple[bytes, bytes]

WEBSOCKET = "WEBSOCKET /get_workflow_res/{workflow_id}/{run_id}"


def encode(
    method: str,
    path: bytes,
    body: bytes | None = None,
    headers: tuple[Header, ...] = (),
    content_type: bytes = b"application/json",
) -> bytes:
    """An HTTP request."""
    lines = [method.encode() + b" " + path + b" HTTP/1.1", b"Host: 127.0.0.1"]
    if body is not None:
        if content_type:
            lines.append(b"Content-Type: " + content_type)
        lines.append(b"Content-Length: %d" % len(body))
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


@dataclass(frozen=True, slots=True)
class Plan:
    """A good request before it is written: what hostile ones are made of."""

    operation: str
    path: str
    body: Any = None
    query: str = ""
    learns: str = ""
    slot: int = 0
    place: int = 0
    sent: str = ""
    stream: float | None = None

    @property
    def method(self) -> str:
        return self.operation.split(" ", 1)[0]

    def request(self, kind: str, **changes: Any) -> Request:
        """The request, with `headers`, `body` and so on in place of what is planned."""
        body = changes.get("body", None if self.body is None else json_text(self.body).encode())
        path = changes.get("path", (self.path + self.query).encode())
        data = encode(
            self.method,
            path,
            body,
            changes.get("headers", ()),
            changes.get("content_type", b"application/json"),
        )
        return Request(
            kind,
            changes.get("operation", self.operation),
            data,
            proxy=changes.get("proxy", False),
            stream=self.stream,
            learns=self.learns,
            slot=self.slot,
            place=self.place,
            sent=self.sent,
        )
