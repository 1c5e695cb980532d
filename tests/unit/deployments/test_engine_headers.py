"""Headers that the engine reads: none of them can be unreadable for it, or steer it."""

from __future__ import annotations

from importlib import import_module

import pytest
from starlette.types import Receive, Scope, Send

from deployments.engine_headers import ENVIRONMENT, EngineHeadersMiddleware, middlewares

pytestmark = pytest.mark.anyio

Headers = list[tuple[bytes, bytes]]


async def passed_on(headers: Headers) -> Headers:
    """What the engine gets to see of `headers`."""
    seen: list[Headers] = []

    async def engine(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["headers"])

    async def nothing(*_: object) -> None: ...

    scope = {"type": "http", "headers": headers}
    await EngineHeadersMiddleware(engine)(scope, nothing, nothing)  # type: ignore[arg-type]  # never called
    return seen[0]


async def test_values_become_utf8() -> None:
    """Those that are stay as they are, byte for byte."""
    good: Headers = [(b"host", b"localhost"), (b"x-request-id", "é".encode()), (b"a", b"")]
    assert await passed_on(good) == good
    assert await passed_on([(b"x-request-id", b"\xe9"), (b"b", b"\xff\xfe")]) == [
        (b"x-request-id", "é".encode()),
        (b"b", "ÿþ".encode()),
    ]


async def test_headers_that_steer_the_engine_are_left_out() -> None:
    """However they are written; those that only look like them stay."""
    for name in (b"x-request-timeout-seconds", b"X-Session-ID", b"serve_multiplexed_model_id"):
        assert await passed_on([(name, b"inf"), (b"x-request-timeout", b"1")]) == [
            (b"x-request-timeout", b"1")
        ]


def test_the_engine_is_told_where_to_ask() -> None:
    """The environment variable names the function that gives the middleware."""
    (path,) = ENVIRONMENT.values()
    module, _, name = path.partition(":")
    assert getattr(import_module(module), name) is middlewares
    (found,) = middlewares()
    assert found.cls is EngineHeadersMiddleware
