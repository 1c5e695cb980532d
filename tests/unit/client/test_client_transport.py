"""The HTTP transport over a played network."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from lattice.client.transport import (
    BrokenOffError,
    HttpTransport,
    NotSentError,
    Request,
    TimedOutError,
    is_local,
)
from lattice.versions import PROTOCOL, release


def transport(answer: Callable[[httpx.Request], httpx.Response]) -> HttpTransport:
    return HttpTransport("http://host/base", httpx.MockTransport(answer))


def test_a_request_and_its_answer() -> None:
    """Path, query, body and headers go out; status, body and headers come back."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(418, content=b"tea", headers={"Retry-After": "1"})

    sent = Request("POST", "/a/b?c=1", b"{}", {"idempotency-key": "k"})
    response = transport(answer).send(sent, 5)
    assert str(seen[0].url) == "http://host/base/a/b?c=1"
    assert seen[0].headers["content-type"] == "application/json"
    assert seen[0].headers["idempotency-key"] == "k"
    assert seen[0].extensions["timeout"]["read"] == 5
    assert (response.status, response.body) == (418, b"tea")
    assert response.headers["retry-after"] == "1"


def test_waiting_without_end_still_connects_in_time() -> None:
    """Only the answer is waited for without end."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    transport(answer).send(Request("GET", "/"), None)
    assert seen[0].extensions["timeout"]["read"] is None
    assert seen[0].extensions["timeout"]["connect"] == 30


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (httpx.ConnectError("refused"), NotSentError),
        (httpx.ConnectTimeout(""), NotSentError),
        (httpx.ReadTimeout("slow"), TimedOutError),
        (httpx.ReadError("reset"), BrokenOffError),
        (httpx.RemoteProtocolError("gone"), BrokenOffError),
    ],
)
def test_failures_say_what_the_service_may_have_seen(
    raised: Exception, expected: type[Exception]
) -> None:
    """Nothing, or nobody knows what."""

    def answer(request: httpx.Request) -> httpx.Response:
        raise raised

    with pytest.raises(expected, match=r"\w"):
        transport(answer).send(Request("GET", "/"), 1)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:1", True),
        ("https://lattice.example", False),
    ],
)
def test_which_addresses_are_on_this_machine(url: str, local: bool) -> None:
    """Proxies are not asked for those."""
    assert is_local(url) is local


def test_closing() -> None:
    """A closed transport carries nothing."""
    closed = transport(lambda request: httpx.Response(200))
    closed.close()
    with pytest.raises(RuntimeError):
        closed.send(Request("GET", "/"), 1)


def test_the_client_says_what_it_is() -> None:
    """With every request: the service refuses what it cannot understand."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    transport(answer).send(Request("GET", "/"), 1)
    assert seen[0].headers["user-agent"].startswith(f"lattice/{release()} python/3.")
    assert seen[0].headers["lattice-protocol"] == str(PROTOCOL)
    assert seen[0].headers["lattice-version"] == release()
