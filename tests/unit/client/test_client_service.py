"""Requests of the SDK: repetitions, refusals, versions."""

from __future__ import annotations

import json

import pytest

from lattice import (
    ConnectionFailedError,
    DeadlineError,
    InvalidRequestError,
    LatticeClient,
    LatticeError,
    ServiceError,
    VersionMismatchError,
)
from lattice.client import service as client_service
from lattice.client.transport import (
    BrokenOffError,
    NotSentError,
    Request,
    Response,
    TimedOutError,
)
from tests.unit.client.fake_service import Answer, FakeService


def test_an_absent_service_is_said_to_be_absent_at_once() -> None:
    """Who never answered is not waited for; the error says how to start a service."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = NotSentError("Connection refused")
    with pytest.raises(ConnectionFailedError, match=r"Connection refused.*make serve") as caught:
        fake.service().create_workflow()
    assert fake.time.pauses == []
    assert isinstance(caught.value, ConnectionError)


def test_a_broken_request_is_repeated_under_the_same_key() -> None:
    """The service can tell that it is the same request."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = [
        BrokenOffError("reset"),
        (503, {"detail": "busy"}),
        (200, {"workflow_id": "w"}),
        NotSentError("restarting"),
        (200, {"workflow_id": "other"}),
    ]
    service = fake.service()
    assert service.create_workflow() == "w"
    keys = [request.headers["idempotency-key"] for request in fake.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert service.create_workflow() == "other"
    assert fake.requests[-1].headers["idempotency-key"] != keys[0]


def test_a_busy_service_is_asked_again_when_it_says() -> None:
    """Retry-After is kept."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = [
        Response(503, b'{"detail": "busy"}', {"retry-after": "7"}),
        (200, {"workflow_id": "w"}),
    ]
    assert fake.service().create_workflow() == "w"
    assert fake.time.pauses == [7.0]


#: What HAProxy and Serve's own proxy answer before they know where the service is.
NO_PATH = b"Path '/create_workflow' not found. Ping http://.../-/routes for available routes."


@pytest.mark.parametrize(("status", "body"), [(404, NO_PATH), (500, b"<h1>"), (502, b"<h1>")])
def test_a_proxy_whose_service_restarts_is_asked_again(status: int, body: bytes) -> None:
    """What it answers by itself is not the service's word; what it may have passed on is not sent twice."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = [
        (200, {"workflow_id": "w"}),
        (status, body),
        (200, {"workflow_id": "w"}),
    ]
    service = fake.service()
    service.create_workflow()
    assert service.create_workflow() == "w"
    fake.answers["POST /run_langgraph_task"] = [(status, body), (200, {"result": "AA=="})]
    if status == 404:
        assert service.run_langgraph_task("w", "t", b"", b"", 5) == b"\0"
    else:
        with pytest.raises(ServiceError):
            service.run_langgraph_task("w", "t", b"", b"", 5)


def test_a_proxy_without_the_service_is_not_waited_for() -> None:
    """A path that is unknown where nobody has answered as Lattice does is a wrong address."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = (404, NO_PATH)
    with pytest.raises(ServiceError, match="not found"):
        fake.service().create_workflow()
    assert fake.time.pauses == []


@pytest.mark.parametrize("retry_after", ["60", "soon"])
def test_a_service_that_stays_busy_is_given_up(retry_after: str) -> None:
    """Within the time-out, in the service's words; a Retry-After that is no number is none."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = Response(
        503, b'{"detail": "the store is full"}', {"retry-after": retry_after}
    )
    with pytest.raises(ServiceError, match="the store is full") as caught:
        fake.service(timeout=10).create_workflow()
    assert caught.value.status == 503
    assert fake.time.at <= 10


def test_a_connection_that_keeps_breaking_is_given_up() -> None:
    """Within the time-out, and it is said that the service may have acted."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = BrokenOffError("reset")
    with pytest.raises(ConnectionFailedError, match="may have begun"):
        fake.service(timeout=5).create_workflow()
    assert fake.time.at <= 5


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((503, {"detail": "the database is away"}), ServiceError),
        (TimedOutError("nothing"), DeadlineError),
        (NotSentError("refused"), ConnectionFailedError),
        (BrokenOffError("reset"), ConnectionFailedError),
    ],
)
def test_whether_it_is_ready(answer: Answer, error: type[LatticeError]) -> None:
    """Is asked once, and what is wrong is told at once."""
    fake = FakeService()
    fake.answers["GET /readyz"] = [(200, {}), answer]
    service = fake.service()
    service.ready()
    with pytest.raises(error):
        service.ready()
    assert fake.paths() == ["/readyz"] * 2


def test_an_answer_that_does_not_come() -> None:
    """Is a time-out."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = TimedOutError("read")
    with pytest.raises(DeadlineError, match="create_workflow: not within 5 s") as caught:
        fake.service(timeout=5).create_workflow()
    assert isinstance(caught.value, TimeoutError)
    assert fake.timeouts == [5]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "resources.cpu: found -1"}, "resources.cpu: found -1"),
        (
            {"detail": [{"loc": ["body", "tasks", 0], "msg": "Field required"}]},
            "body.tasks.0: Field required",
        ),
        (b"<h1>Bad gateway</h1>", "<h1>Bad gateway</h1>"),
        (b"", "no reason given"),
    ],
)
def test_refusals_are_told_in_the_services_words(body: object, words: str) -> None:
    """Whatever form they have."""
    fake = FakeService()
    fake.answers["GET /runs/r"] = (400, body)
    with pytest.raises(ServiceError) as caught:
        fake.service().describe_run("r")
    assert caught.value.detail == words
    assert str(caught.value) == f"{words} (status 400)"


def test_something_else_answers() -> None:
    """An address that is not Lattice's is suspected."""
    fake = FakeService()
    fake.answers["GET /healthz"] = (200, b"hello")
    with pytest.raises(ServiceError, match=r"not Lattice's: hello; is the address right\?"):
        fake.service().check_versions()


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"python": "3.99.1", "cloudpickle": "3.1.0"}, r"this client has Python .* 3\.99\.1"),
        ({"python": None, "cloudpickle": "99.0"}, r"the service has cloudpickle 99\.0"),
    ],
)
def test_versions_that_do_not_fit(versions: dict[str, str | None], words: str) -> None:
    """Are said in words, before anything is sent."""
    fake = FakeService()
    health = json.loads(fake.send(Request("GET", "/healthz"), None).body)
    fake.answers["GET /healthz"] = (200, health | {k: v for k, v in versions.items() if v})
    service = fake.service()
    with pytest.raises(VersionMismatchError, match=words):
        service.check_versions()
    with pytest.raises(VersionMismatchError):
        service.check_versions()


def test_versions_are_asked_once() -> None:
    """A service does not change its Python while it runs."""
    fake = FakeService()
    service = fake.service()
    service.check_versions()
    service.check_versions()
    assert fake.paths() == ["/healthz"]


def test_a_service_that_is_too_old_is_refused_by_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In words that say which side to upgrade; a newer service decides itself whom it understands."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = [
        Response(404, b"{}", {"lattice-protocol": "1", "lattice-version": "0.0.9"}),
        Response(200, b'{"workflow_id": "w"}', {"lattice-protocol": "99"}),
    ]
    monkeypatch.setattr(client_service, "OLDEST", 2)
    with pytest.raises(VersionMismatchError, match=r"Lattice 0\.0\.9.*upgrade the service"):
        fake.service().create_workflow()
    assert fake.service().create_workflow() == "w"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_an_address_that_is_none(url: str) -> None:
    """Is refused when the client is made."""
    with pytest.raises(InvalidRequestError, match="url"):
        LatticeClient(url)


def test_client_is_a_context_manager() -> None:
    """Leaving it closes its connections; it says where it points."""
    fake = FakeService()
    with LatticeClient("http://127.0.0.1:9/", transport=fake) as client:
        assert repr(client) == "LatticeClient('http://127.0.0.1:9')"
        assert client.url == "http://127.0.0.1:9"
    assert fake.closed
