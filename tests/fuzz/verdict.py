"""What may be answered to a request, by the OpenAPI document and by what the service promises."""

from __future__ import annotations

import json
from typing import Any

from lattice.api.errors import INTERNAL_DETAIL
from tests.fuzz.request import WEBSOCKET, Request
from tests.fuzz.wire import Answer

#: What the proxy and the server say to what is no proper HTTP, in words of their own.
_OF_HTTP = frozenset({400, 408, 411, 413, 414, 417, 422, 426, 431, 505})
#: What may come where no operation is hit.
_ELSEWHERE = frozenset({101, 200, 204, 307, 400, 403, 404, 405, 409, 413, 422})
#: Documented with the WebSocket's route, and those of RFC 6455 for frames that break its rules.
_CLOSE_CODES = frozenset({None, 1000, 1002, 1005, 1007, 1009, 1013, 4400, 4404})
#: The longest that is said of an error: a traceback is bounded, and so is what is quoted.
_LONGEST_REFUSAL = 64 * 1024
_CALL = "/run_langgraph_task"


class Verdict:
    """Judges answers by an OpenAPI document."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._documented = {
            f"{method.upper()} {path}": {int(status): what for status, what in found.items()}
            for path, operations in document["paths"].items()
            for method, found in ((m, o["responses"]) for m, o in operations.items())
        }
        self._documented[WEBSOCKET] = {101: {}, 403: {}}

    def of(self, request: Request, answer: Answer) -> str:
        """What is wrong with `answer`; "" if nothing is."""
        status = answer.status
        if not request.operation or request.proxy:
            allowed = _ELSEWHERE | (_OF_HTTP if request.proxy else frozenset())
            allowed |= self._documented.get(request.operation, {}).keys()
        else:
            allowed = frozenset(self._documented[request.operation])
        called = _CALL.encode() in request.data.split(b"\r\n", 1)[0]
        if status == 503:
            if not answer.headers.get("retry-after", "").isdecimal():
                return "no Retry-After"
            return self._refusal_fault(request, answer, called)
        if status not in allowed and not (called and status in (500, 504)):
            return f"status {status} is not documented"
        if status == 101:
            return _stream_fault(answer)
        if status >= 400:
            return self._refusal_fault(request, answer, called)
        return "" if request.method == "HEAD" else _success_fault(answer)

    def _refusal_fault(self, request: Request, answer: Answer, called: bool) -> str:
        if request.method in ("HEAD", "OPTIONS"):
            return ""
        if len(answer.body) > _LONGEST_REFUSAL:
            return f"a refusal of {len(answer.body)} bytes"
        try:
            detail = json.loads(answer.body)["detail"]
        except (ValueError, KeyError, TypeError):
            ours = not request.proxy or answer.status not in _OF_HTTP
            # Refusing a WebSocket before it is accepted gives no body.
            ours = ours and not (answer.status == 403 and "websocket" in request.kind)
            return "a refusal without a detail in JSON" if ours else ""
        if not isinstance(detail, str) or not detail:
            return "a detail that is no text"
        if answer.status == 504 and not called:
            return "504"
        if answer.status == 500 and (not called or detail == INTERNAL_DETAIL):
            return "500 for what is not the user's code"
        return ""


def _success_fault(answer: Answer) -> str:
    kind = answer.headers.get("content-type", "")
    if answer.status == 200 and kind == "application/json":
        try:
            json.loads(answer.body)
        except ValueError:
            return "malformed JSON"
    if kind.startswith("text/event-stream"):
        for line in answer.body.split(b"\n")[:-1]:
            if line.startswith(b"data:") and INTERNAL_DETAIL.encode() in line:
                return "a defect in a stream"
    return ""


def _stream_fault(answer: Answer) -> str:
    if answer.closed not in _CLOSE_CODES:
        return f"close code {answer.closed}"
    for text in answer.messages:
        message = json.loads(text)
        if not {"type", "data"} <= message.keys():
            return f"a message without type or data: {text[:100]!r}"
    return ""
