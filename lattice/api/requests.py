"""Request bodies read strictly: what later code cannot keep or send on is refused here, as malformed.

Python's JSON reader takes more than JSON has (NaN, other encodings), and JSON has texts that trouble
whoever writes them again: numbers beyond a float, lone surrogates, nesting as deep as the stack.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

#: Deepest nesting of a body. Those who write it again start from a stack that is in use already.
MAX_DEPTH = 100

#: Most lists and objects of a body, each of which costs the parser, and so all others who ask, a microsecond and 100
#: bytes; brackets in texts count. More are allowed where they come with so many bytes each, as in source code.
MAX_CONTAINERS = 1_000_000
_DENSITY = 16

#: Half of a surrogate pair as JSON escapes it; only where one occurs can a string hold half a pair.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JSONRoute(APIRoute):
    """A route whose body, if it takes one, is strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        return parse_body(await self.body())


def parse_body(body: bytes) -> Any:
    """The JSON document that `body` is.

    Raises:
        json.JSONDecodeError: it is not JSON.
        HTTPException: it is JSON that is refused; status 422 and a detail that says why.
    """
    containers = body.count(b"[") + body.count(b"{")
    if containers > max(MAX_CONTAINERS, len(body) // _DENSITY):
        raise _refusal(f"{containers} lists and objects", f"at most {MAX_CONTAINERS}")
    try:
        document = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise _refusal(f"byte {error.start} that is not UTF-8", "JSON in UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        # Python refuses to read integers of thousands of digits.
        raise _refusal("a number of too many digits", "shorter numbers") from None
    _check(document, surrogates=_SURROGATE.search(body) is not None)
    return document


def _check(document: Any, surrogates: bool) -> None:
    """Walks the document level by level, without recursion. Raises HTTPException."""
    level: list[Any] = [[document]]
    for _ in range(MAX_DEPTH + 1):
        if surrogates:
            for node in level:
                _check_strings(node)
        level = [
            value
            for node in level
            for value in (node.values() if isinstance(node, dict) else node)
            if isinstance(value, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _check_strings(node: Any) -> None:
    strings = [*node, *node.values()] if isinstance(node, dict) else node
    for text in strings:
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise _refusal("half of a surrogate pair", "whole characters") from None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _refusal(f"the number {text[:40]}", "numbers within the range of a double")
    return value


def _refuse_constant(name: str) -> float:
    raise _refusal(name, "numbers as JSON writes them")


def _too_deep() -> HTTPException:
    return _refusal("deeper nesting", f"up to {MAX_DEPTH} levels")


def _refusal(found: str, allowed: str) -> HTTPException:
    return HTTPException(422, f"body: found {found}; allowed: {allowed}")
