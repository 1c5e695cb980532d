"""The API key of the SDK: where it comes from, and where it goes."""

from __future__ import annotations

import threading

import pytest
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from lattice import InvalidRequestError, LangGraphClient, LatticeClient, ServiceError
from lattice.client.service import Service
from lattice.client.subscription import open_with
from tests.unit.client.fake_service import URL, FakeService

KEY = "lattice_" + "k" * 43


@pytest.mark.parametrize(
    ("given", "environment", "sent"),
    [
        (KEY, None, KEY),
        (KEY, "lattice_other", KEY),
        (None, f" {KEY}\n", KEY),
        (None, None, None),
        (None, "", None),
        ("", KEY, None),
    ],
)
def test_each_request_carries_the_key(
    monkeypatch: pytest.MonkeyPatch, given: str | None, environment: str | None, sent: str | None
) -> None:
    """The one that is given, else that of the environment; also beside an idempotency key."""
    monkeypatch.delenv("LATTICE_API_KEY", raising=False)
    if environment is not None:
        monkeypatch.setenv("LATTICE_API_KEY", environment)
    fake = FakeService()
    fake.answers["POST /create_workflow"] = (200, {"workflow_id": "w"})
    fake.answers["POST /runs/r/cancel"] = (200, {"status": "success", "run_status": "cancelled"})
    service = Service(URL, 5, fake, api_key=given)
    service.create_workflow()
    service.cancel_run("r")
    expected = None if sent is None else f"Bearer {sent}"
    assert [each.headers.get("authorization") for each in fake.requests] == [expected] * 2
    assert "idempotency-key" in fake.requests[0].headers


@pytest.mark.parametrize("wrong", ["two words", "kéy", "a\nb", "a\x00b"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    with pytest.raises(InvalidRequestError, match="api_key: found") as refused:
        LatticeClient(api_key=wrong)
    assert wrong not in str(refused.value)
    if "\x00" not in wrong:
        monkeypatch.setenv("LATTICE_API_KEY", wrong)
        with pytest.raises(InvalidRequestError, match="LATTICE_API_KEY: found"):
            LangGraphClient()


def test_a_client_shows_no_key() -> None:
    with LatticeClient(api_key=KEY) as client:
        assert KEY not in repr(client)


def test_a_request_beyond_the_rate_is_sent_again() -> None:
    """When the service says so; one without a key is not."""
    fake = FakeService()
    fake.answers["POST /create_workflow"] = [
        (429, {"detail": "requests_per_second"}),
        (200, {"workflow_id": "w"}),
    ]
    assert fake.service().create_workflow() == "w"
    assert len(fake.requests) == 2
    fake.answers["POST /create_workflow"] = (401, {"detail": "an API key is needed"})
    with pytest.raises(ServiceError, match="an API key is needed") as refused:
        fake.service().create_workflow()
    assert refused.value.status == 401
    assert len(fake.requests) == 3


def test_a_socket_carries_the_key_and_a_refusal_is_told_in_words() -> None:
    seen: list[str | None] = []

    def process(connection: ServerConnection, request: Request) -> Response | None:
        seen.append(request.headers.get("authorization"))
        answer = connection.respond(401, '{"detail": "the key is nobody\'s"}')  # type: ignore[arg-type]
        return answer if len(seen) > 1 else None

    with serve(
        lambda connection: connection.send("one"), "127.0.0.1", 0, process_request=process
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
            headers = {"authorization": f"Bearer {KEY}"}
            with open_with(headers, url, 5) as socket:
                assert socket.receive(30) == "one"
            with pytest.raises(ServiceError) as refused, open_with(headers, url, 5):
                pass
        finally:
            server.shutdown()
            thread.join()
    assert seen == [f"Bearer {KEY}"] * 2
    assert refused.value.status == 401
    assert str(refused.value).count("{") == 0
    assert "the key is nobody's" in str(refused.value)
