"""How errors are answered: one table from class to HTTP status, one to WebSocket close code.

Every refusal has the same body, `{"detail": text}`. Routes raise and hold no try blocks. A detail may
quote what the user sent, so it is written in ASCII JSON, which holds any text.
"""

from __future__ import annotations

import logging
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from lattice.api.models.schemas import ErrorResponse
from lattice.api.responses import SafeJSONResponse
from lattice.errors import (
    AdminOnlyError,
    CallTimeoutError,
    ConflictError,
    ExposedError,
    ForbiddenError,
    InvalidRequestError,
    InvalidTransitionError,
    LatticeError,
    NotFoundError,
    ProtocolRefusedError,
    TooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    UserCodeError,
)

_logger = logging.getLogger(__name__)

#: The status of an error is that of the first class of its MRO that is listed.
STATUS: Mapping[type, int] = {
    InvalidRequestError: 400,
    ProtocolRefusedError: 400,
    UnauthorizedError: 401,
    ForbiddenError: 403,
    ExposedError: 403,
    AdminOnlyError: 403,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    TooManyRequestsError: 429,
    UserCodeError: 500,
    InvalidTransitionError: 500,
    UnavailableError: 503,
    CallTimeoutError: 504,
}

#: The same for a WebSocket that has been accepted: private codes 4xxx, else those of RFC 6455.
CLOSE_CODES: Mapping[type, int] = {
    InvalidRequestError: 4400,
    NotFoundError: 4404,
    UnavailableError: 1013,
}

#: What is said of an error that is no LatticeError: its text may hold what is not for users.
INTERNAL_DETAIL = "Internal error of the service; its log has the traceback"

#: How a client is told to bring a key (RFC 6750).
_CHALLENGE = 'Bearer realm="lattice"'

#: Longest close reason that RFC 6455 allows, in bytes.
_MAX_REASON = 123

_DESCRIPTIONS = {
    400: "What was asked makes no sense; `detail` names the field, what was found, what is allowed.",
    401: "No API key, or one that is not accepted; `detail` says how to send one.",
    403: "The request comes from a page of another site, or names another host; or it needs an `admin` key.",
    404: "An id that names nothing.",
    409: "The `Idempotency-Key` was used for another request.",
    413: "Over a limit; `detail` names the setting.",
    429: "More requests than the API key allows; `Retry-After` says when to try again.",
    422: "The body or a parameter is malformed; `detail` names the field.",
    500: "The user's own code failed (`detail` is its traceback), or the service did.",
    503: "Not now; `Retry-After` says when to try again.",
    504: "The call did not end within the setting `call_timeout`, waiting included.",
}


def _lookup(table: Mapping[type, int], error: BaseException, default: int) -> int:
    return next((table[cls] for cls in type(error).__mro__ if cls in table), default)


def status_of(error: BaseException) -> int:
    """The HTTP status that answers `error`."""
    return _lookup(STATUS, error, 500)


def close_of(error: BaseException) -> tuple[int, str]:
    """The WebSocket close code and the reason, at most 123 bytes long, that answer `error`."""
    reason = str(error) if isinstance(error, LatticeError) else INTERNAL_DETAIL
    data = reason.encode("utf-8", "replace")[:_MAX_REASON]
    return _lookup(CLOSE_CODES, error, 1011), data.decode("utf-8", "ignore")


def error_response(error: LatticeError) -> Response:
    """The answer to an HTTP request that `error` ended."""
    headers = {}
    if isinstance(error, UnavailableError):
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif isinstance(error, TooManyRequestsError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    elif isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = _CHALLENGE + (', error="invalid_token"' * error.rejected)
    elif isinstance(error, AdminOnlyError):
        headers["WWW-Authenticate"] = f'{_CHALLENGE}, error="insufficient_scope"'
    return SafeJSONResponse({"detail": str(error)}, status_of(error), headers)


async def refuse(error: LatticeError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers a request, or a handshake of a WebSocket, that does not get to the application."""
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await error_response(error)(scope, receive, send)
    else:
        # Closing before accepting is how ASGI refuses a handshake: 403.
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:100]})


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for these statuses."""
    return {
        status: {"model": ErrorResponse, "description": _DESCRIPTIONS[status]}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Makes `app` answer every error as the tables say."""
    app.add_exception_handler(
        LatticeError,
        _on_lattice_error,  # type: ignore[arg-type]  # one handler for both kinds of connection
    )
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_defect)


async def _on_lattice_error(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, LatticeError)
    if isinstance(connection, WebSocket):
        code, reason = close_of(error)
        await connection.close(code, reason)
        return None
    if status_of(error) == 500 and not isinstance(error, UserCodeError):
        _logger.error("%s failed", connection.url.path, exc_info=error)
    return error_response(error)


async def _on_defect(connection: HTTPConnection, error: Exception) -> Response:
    _logger.error("%s failed", connection.url.path, exc_info=error)
    return SafeJSONResponse({"detail": INTERNAL_DETAIL}, 500)


async def _on_validation_error(connection: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    content_type = connection.headers.get("content-type", "none")
    return SafeJSONResponse({"detail": describe(error.errors(), content_type)}, 422)


# -- validation --------------------------------------------------------------------------------

#: How many errors of one request are described, and how much of each text.
_MOST_DESCRIBED = 5
_EXCERPT = 80

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _EXCERPT


def describe(errors: Any, content_type: str) -> str:
    """A text for the errors that pydantic found: each field, what was found, what is allowed."""
    texts = [_describe_one(error, content_type) for error in errors[:_MOST_DESCRIBED]]
    if len(errors) > _MOST_DESCRIBED:
        texts.append(f"and {len(errors) - _MOST_DESCRIBED} more")
    return "; ".join(texts)


def _describe_one(error: Mapping[str, Any], content_type: str) -> str:
    kind, found = error["type"], error.get("input")
    if kind == "json_invalid":
        where = error["loc"][-1]
        return (
            f"body: found malformed JSON at character {where} ({error['ctx']['error']}); "
            "a JSON object is allowed"
        )
    field = _field(error["loc"])
    if isinstance(found, bytes):
        return f"Content-Type: found {content_type[:_EXCERPT]}; the body must be application/json"
    # What pydantic shows as the input of a missing field is the object that lacks it.
    shown = "nothing" if kind == "missing" else f"{_repr.repr(found)} ({type(found).__name__})"
    return f"{field}: found {shown}; {error['msg']}"


def _field(location: tuple[int | str, ...]) -> str:
    """`("body", "tasks", 0, "task_id")` as `tasks[0].task_id`; other places keep their first part."""
    parts = location[1:] if location[:1] == ("body",) and len(location) > 1 else location
    text = ""
    for part in parts:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + part[:_EXCERPT]
    return text
