"""Following a run: each message once and in order, whatever becomes of the connections."""

from __future__ import annotations

import json

import pytest

from lattice import ConnectionFailedError, DeadlineError, ServiceError
from lattice.client.subscription import ClosedError, LostError, Subscription, socket_url
from tests.unit.client.fake_service import FakeSockets, FakeTime, Log


def read(message: str | bytes) -> tuple[int, bool]:
    document = json.loads(message)
    return document["data"]["seq"], document["type"] == "finish_workflow"


def follow(
    scripts: list[list[str | Exception]], after: int = 0, timeout: float | None = None
) -> tuple[list[int], FakeSockets, FakeTime]:
    """The numbers of the messages that come, and what was done for them."""
    sockets, clock = FakeSockets(), FakeTime()
    sockets.scripts = scripts
    subscription = Subscription(
        "ws://host/x",
        read,
        30.0,
        after=after,
        open_socket=sockets.open,
        now=clock.now,
        pause=clock.pause,
    )
    return [read(message)[0] for message in subscription.follow(timeout)], sockets, clock


MESSAGES: list[str | Exception] = [*Log().finish("a").finish("b").end().messages]


def test_from_the_first_to_the_last() -> None:
    """Without incidents, one connection is enough."""
    numbers, sockets, _ = follow([MESSAGES])
    assert numbers == [1, 2, 3, 4, 5]
    assert sockets.urls == ["ws://host/x?after=0"]


def test_going_on_after_a_number() -> None:
    """What was seen is not asked for."""
    numbers, sockets, _ = follow([MESSAGES], after=3)
    assert numbers == [4, 5]
    assert sockets.urls == ["ws://host/x?after=3"]


def test_going_on_after_the_last() -> None:
    """The service closes at once, and nothing comes. A proxy closes in order, too, but not at once."""
    numbers, sockets, clock = follow([[ClosedError("received 1000 (OK)")]], after=5)
    assert (numbers, len(sockets.urls), clock.pauses) == ([], 1, [])
    closed = ClosedError("received 1000 (OK)")
    for scripts in ([[*MESSAGES[:2], closed], MESSAGES], [MESSAGES[:2], [closed], MESSAGES]):
        numbers, _, _ = follow(scripts)
        assert numbers == [1, 2, 3, 4, 5]
    with pytest.raises(ConnectionFailedError):
        follow([[closed]])


def test_going_on_after_the_last_with_logs() -> None:
    """What was printed comes, and nothing else."""
    sockets, clock = FakeSockets(), FakeTime()
    text = json.dumps({"type": "task_log", "data": {"seq": 0}})
    sockets.always = [text, ClosedError("received 1000 (OK)")]
    subscription = Subscription(
        "ws://host/x",
        read,
        30.0,
        after=5,
        logs=True,
        open_socket=sockets.open,
        now=clock.now,
        pause=clock.pause,
    )
    assert [*subscription.follow()] == [text]
    assert len(sockets.urls) == 1


def test_a_lost_connection_is_made_again() -> None:
    """The next one begins behind the last message that came."""
    numbers, sockets, _ = follow(
        [MESSAGES[:2], [LostError("reset")], [ConnectionRefusedError("refused")], MESSAGES]
    )
    assert numbers == [1, 2, 3, 4, 5]
    assert sockets.urls == [f"ws://host/x?after={number}" for number in (0, 2, 2, 2)]


def test_messages_that_come_twice_count_once() -> None:
    """A service may repeat itself."""
    again = [*MESSAGES[:2], *MESSAGES[:3], *MESSAGES[2:]]
    assert follow([again])[0] == [1, 2, 3, 4, 5]


def test_a_gap_is_not_passed_over() -> None:
    """The missing message is fetched over another connection."""
    numbers, sockets, _ = follow([[MESSAGES[0], *MESSAGES[2:]], MESSAGES])
    assert numbers == [1, 2, 3, 4, 5]
    assert sockets.urls[1] == "ws://host/x?after=1"


def test_a_service_that_is_gone_is_given_up() -> None:
    """After the time that one may be without a connection."""
    with pytest.raises(ConnectionFailedError, match="refused"):
        follow([[MESSAGES[0]], [ConnectionRefusedError("refused")]])


def test_waiting_grows_and_begins_anew() -> None:
    """Pauses double up to a bound, and are short again once a message has come."""
    refused: list[str | Exception] = [ConnectionRefusedError("refused")]
    _, _, clock = follow([*[refused] * 6, MESSAGES[:1], refused, MESSAGES])
    assert clock.pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 0.1, 0.2]


def test_a_refusal_is_told() -> None:
    """An unknown run stays unknown."""
    with pytest.raises(ServiceError, match="Run x not found"):
        follow([[ServiceError(404, "Run x not found")]])


def test_a_deadline() -> None:
    """Is kept while messages are waited for, and while connections are."""
    with pytest.raises(DeadlineError, match="not within 5 s"):
        follow([[MESSAGES[0], TimeoutError()]], timeout=5)
    with pytest.raises(DeadlineError, match="not within 1 s"):
        follow([[ConnectionRefusedError("refused")]], timeout=1)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", "ws://h:1/p"),
        ("https://h/base", "wss://h/base/p"),
    ],
)
def test_socket_addresses(url: str, expected: str) -> None:
    """They follow the service's address."""
    assert socket_url(url, "/p") == expected
