"""The WebSocket library below a subscription, against a played service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus

import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from lattice import ServiceError
from lattice.client.subscription import ClosedError, LostError, open_socket
from lattice.versions import PROTOCOL

Behaviour = Callable[[ServerConnection], None]


@contextmanager
def served(behave: Behaviour, refusal: HTTPStatus | None = None) -> Iterator[str]:
    """The address of a server that treats each connection so, or refuses it."""

    def process(connection: ServerConnection, request: Request) -> Response | None:
        return None if refusal is None else connection.respond(refusal, "in words")

    with serve(behave, "127.0.0.1", 0, process_request=process) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_messages_and_the_end_of_a_connection() -> None:
    """Messages come as they were sent; a connection that ends is lost, closed in order or not."""
    with (
        served(lambda connection: connection.send("one")) as url,
        open_socket(url, 30) as socket,
    ):
        assert socket.receive(30) == "one"
        with pytest.raises(ClosedError):
            socket.receive(30)


def test_waiting_has_an_end() -> None:
    """After the time that was given."""
    release = threading.Event()
    with (
        served(lambda connection: release.wait(60) and None) as url,
        open_socket(url, 30) as socket,
    ):
        with pytest.raises(TimeoutError):
            socket.receive(0)
        release.set()


def test_a_refusal_after_the_connection_is_made() -> None:
    """Codes from 4000 on are the service's own, with the status in their last digits."""
    with (
        served(lambda connection: connection.close(4404, "Run x not found")) as url,
        open_socket(url, 30) as socket,
        pytest.raises(ServiceError, match="Run x not found") as caught,
    ):
        socket.receive(30)
    assert caught.value.status == 404


def test_a_service_that_goes_away() -> None:
    """Is lost for now, be it that it says so or not."""
    with (
        served(lambda connection: connection.close(1013, "try again later")) as url,
        open_socket(url, 30) as socket,
        pytest.raises(LostError) as caught,
    ):
        socket.receive(30)
    assert not isinstance(caught.value, ClosedError)


@pytest.mark.parametrize(
    ("status", "raised"),
    [
        (HTTPStatus.SERVICE_UNAVAILABLE, LostError),
        (HTTPStatus.NOT_FOUND, LostError),  # a proxy that does not know the service yet
        (HTTPStatus.INTERNAL_SERVER_ERROR, LostError),
        (HTTPStatus.FORBIDDEN, ServiceError),
    ],
)
def test_a_connection_that_is_refused(status: HTTPStatus, raised: type[Exception]) -> None:
    """For now, or for good and in the service's words."""
    with (
        served(lambda connection: None, status) as url,
        pytest.raises(raised, match=r"503|404|500|in words \(status 403\)"),
        open_socket(url, 30),
    ):
        pass


def test_nobody_there() -> None:
    """Is lost for now."""
    with pytest.raises(LostError), open_socket("ws://127.0.0.1:9", 5):
        pass


def test_the_client_says_what_it_is() -> None:
    """As with every other request."""
    seen: dict[str, str] = {}

    def note(connection: ServerConnection) -> None:
        assert connection.request is not None
        seen.update(connection.request.headers.raw_items())

    with served(note) as url, open_socket(url, 30) as socket, pytest.raises(LostError):
        socket.receive(30)
    assert seen["lattice-protocol"] == str(PROTOCOL)
    assert seen["User-Agent"].startswith("lattice/")
