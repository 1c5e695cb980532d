"""What the verdict on an answer rests on: each thing that may not be is told."""

from __future__ import annotations

import json
from typing import cast

import pytest

from lattice.api.errors import INTERNAL_DETAIL
from lattice.api.server import create_app
from lattice.ports.service import OrchestratorService
from tests.fuzz.request import WEBSOCKET, Request, encode
from tests.fuzz.verdict import Verdict
from tests.fuzz.wire import Answer

ADD = Request("good", "POST /add_task", encode("POST", b"/add_task", b"{}"))
CALL = Request("good", "POST /run_langgraph_task", encode("POST", b"/run_langgraph_task", b"{}"))
PATH = Request("hostile path", "", encode("GET", b"/runs/%00"), proxy=True)
SOCKET = Request("websocket", WEBSOCKET, encode("GET", b"/get_workflow_res/a/b"))


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    """By the document that the service has."""
    service = cast(OrchestratorService, object())
    return Verdict(create_app(metrics_enabled=False, orchestrator=service).openapi())


def refusal(status: int, detail: object = "why", **headers: str) -> Answer:
    return Answer(status, headers, json.dumps({"detail": detail}).encode())


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (ADD, refusal(404)),
        (ADD, Answer(503, {"retry-after": "1"}, b'{"detail": "later"}')),
        (CALL, refusal(500, "Traceback of the user's")),
        (CALL, refusal(504)),
        (PATH, refusal(404)),
        (PATH, Answer(400, {}, b"<h1>Bad request</h1>")),
        (SOCKET, Answer(101, {}, b"", 4404, [b'{"type": "a", "data": {}}'])),
    ],
)
def test_what_may_be(verdict: Verdict, request_: Request, answer: Answer) -> None:
    """The user's own errors, and what the proxy says of what is no HTTP, among them."""
    assert not verdict.of(request_, answer)


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (ADD, refusal(500)),
        (ADD, refusal(502)),
        (ADD, refusal(504)),
        (ADD, refusal(405)),
        (ADD, refusal(503)),
        (ADD, Answer(503, {"retry-after": "1"}, b"<h1>Unavailable</h1>")),
        (ADD, refusal(422, "")),
        (ADD, refusal(422, [])),
        (ADD, refusal(422, "x" * 100_000)),
        (ADD, Answer(400, {}, b"<h1>Bad request</h1>")),
        (ADD, Answer(200, {"content-type": "application/json"}, b"{")),
        (CALL, refusal(500, INTERNAL_DETAIL)),
        (CALL, Answer(500, {}, b"Internal Server Error")),
        (PATH, refusal(500)),
        (PATH, Answer(404, {}, b"<h1>Not found</h1>")),
        (PATH, Answer(501, {}, b"<h1>Not implemented</h1>")),
        (SOCKET, Answer(101, {}, b"", 1011)),
        (SOCKET, Answer(101, {}, b"", None, [b"{}"])),
    ],
)
def test_what_may_not_be(verdict: Verdict, request_: Request, answer: Answer) -> None:
    """5xx but 503, 503 that does not say when, what is not documented, refusals without words."""
    assert verdict.of(request_, answer)
