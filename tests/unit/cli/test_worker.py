"""The life of `lattice worker`, with a played service and a played node."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lattice import ConnectionFailedError
from lattice.cli import worker as module
from lattice.cli.ray_node import Asked, Joined
from lattice.cli.worker import Worker, resources_of
from lattice.client.transport import NotSentError
from tests.unit.client.fake_service import FakeService

JOINED = Joined("n1", "10.0.0.2", 4.0, 8192.4, 0.0)


class Node:
    """A node that is alive until its script says otherwise. All nodes write what is done to them into `did`."""

    did: list[str]
    lives: list[bool]
    joins: bool

    def __init__(self, address: str, asked: Asked) -> None:
        self.did.append(f"made for {address}")

    def join(self, stop: Callable[[float], bool]) -> Joined | None:
        self.did.append("join")
        while not self.joins:
            if stop(1.0):
                return None
        return JOINED

    def alive(self) -> bool:
        return self.lives.pop(0) if self.lives else True

    def drain(self, seconds: float) -> None:
        self.did.append("drain")
        self.lives[:] = [True, False]

    def stop(self) -> None:
        self.did.append("stop")


class Script:
    """Plays `Leave`: it is told to leave after so many waits, urgently after so many more."""

    def __init__(self, waits: int, urgent_after: int = 1000) -> None:
        self.waits = waits
        self.urgent_after = urgent_after

    def asked(self, seconds: float = 0.0) -> bool:
        self.waits -= seconds > 0
        return self.waits < 0

    def urgently(self, seconds: float = 0.0) -> bool:
        self.urgent_after -= 1
        return self.urgent_after < 0


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> type[Node]:
    Node.did, Node.lives, Node.joins = [], [], True
    monkeypatch.setattr(module, "RayNode", Node)
    return Node


def service(*statuses: str | None) -> FakeService:
    """A service that says of the worker one status after another; None: that it does not know it."""
    fake = FakeService()
    fake.answers["POST /get_head_ray_port"] = (200, {"port": 6379})
    fake.answers["POST /connect_worker"] = (200, {})
    fake.answers["POST /disconnect_worker"] = (200, {})
    entries = [
        [] if status is None else [{"node_id": "n1", "status": status, "running": 0}]
        for status in statuses
    ]
    fake.answers["GET /workers"] = [
        *((200, {"workers": each}) for each in entries),
        *[(200, {"workers": [{"node_id": "n1", "status": "active", "running": 0}]})] * 100,
    ]
    return fake


def work(fake: FakeService, leave: Script, grace: float = 1000.0) -> int:
    played: Any = leave
    return Worker(fake.service(), Asked(), grace, played).work()


def test_it_joins_registers_and_leaves_in_order(
    node: type[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing new comes before what runs is waited for."""
    fake = service()
    assert work(fake, Script(2)) == 0
    assert node.did == ["made for 127.0.0.1:6379", "join", "drain", "stop"]
    (registered,) = fake.bodies("/connect_worker")
    assert registered == {
        "node_id": "n1",
        "node_ip": "10.0.0.2",
        "resources": {"cpu": 4.0, "cpu_mem": 8192, "gpu_resource": {}},
    }
    assert fake.bodies("/disconnect_worker") == [{"node_id": "n1", "leaving": True}]
    assert capsys.readouterr().err.rstrip().endswith("left")


def test_it_leaves_while_it_joins(node: type[Node]) -> None:
    """As where the head's port is not reachable: nobody waits for a join that nobody wants any more."""
    fake, node.joins = service(), False
    assert work(fake, Script(3)) == 0
    assert node.did == ["made for 127.0.0.1:6379", "join"]
    assert fake.bodies("/connect_worker") == []


def test_what_runs_is_waited_for(node: type[Node]) -> None:
    """As the service sees it; only then is the node drained."""
    fake = service()
    busy = [
        {"node_id": "n1", "status": "disconnected", "running": running} for running in (2, 1, 0)
    ]
    fake.answers["GET /workers"] = [(200, {"workers": [each]}) for each in busy]
    assert work(fake, Script(0)) == 0
    assert fake.answers["GET /workers"] == []
    assert node.did == ["made for 127.0.0.1:6379", "join", "drain", "stop"]


def test_a_second_signal_does_not_wait(
    node: type[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status says that something was cut off."""
    fake = service()
    busy = [{"node_id": "n1", "status": "disconnected", "running": 1}]
    fake.answers["GET /workers"] = [(200, {"workers": busy})] * 9
    assert work(fake, Script(0, urgent_after=4)) == 1
    assert node.did[-1] == "stop"
    assert "run again elsewhere" in capsys.readouterr().err


def test_a_node_that_was_lost_joins_again(node: type[Node]) -> None:
    """As when the head was started again."""
    node.lives = [True, False]
    fake = service()
    assert work(fake, Script(5)) == 0
    assert node.did.count("join") == 2
    assert node.did.count("stop") == 2
    assert len(fake.bodies("/connect_worker")) == 2


@pytest.mark.parametrize("status", [None, "unregistered"])
def test_a_service_that_has_forgotten_it_gets_it_again(
    node: type[Node], status: str | None
) -> None:
    """As when its database is another one."""
    fake = service("active", status)
    assert work(fake, Script(4)) == 0
    assert len(fake.bodies("/connect_worker")) == 2
    assert node.did.count("join") == 1


def test_what_somebody_has_disconnected_stays_so(
    node: type[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so once, and does not connect itself."""
    fake = service("disconnected", "disconnected", "active")
    assert work(fake, Script(4)) == 0
    assert len(fake.bodies("/connect_worker")) == 1
    assert capsys.readouterr().err.count("somebody has disconnected it") == 1


@pytest.mark.parametrize("status", ["waiting", "lost"])
def test_a_service_with_another_cluster_is_joined_there(node: type[Node], status: str) -> None:
    """It was started anew, and its head listens at another port."""
    fake = service(status)
    fake.answers["POST /get_head_ray_port"] = [(200, {"port": 1}), *[(200, {"port": 2})] * 9]
    assert work(fake, Script(4)) == 0
    made = [each for each in node.did if each.startswith("made")]
    assert made == ["made for 127.0.0.1:1", "made for 127.0.0.1:2"]


def test_a_service_that_is_away_is_waited_for_but_not_at_first(
    node: type[Node], capsys: pytest.CaptureFixture[str]
) -> None:
    """Who cannot even begin is told; who works goes on."""
    fake = service()
    fake.answers["POST /get_head_ray_port"] = NotSentError("refused")
    with pytest.raises(ConnectionFailedError):
        work(fake, Script(3))
    fake = service()
    fake.answers["GET /workers"] = [
        *[(500, {"detail": "broken"})] * 2,
        (200, {"workers": []}),
    ]
    # It gives work until it is told, and what came in between is waited for.
    fake.answers["POST /disconnect_worker"] = [*[(500, {"detail": "broken"})] * 2, (200, {})]
    assert work(fake, Script(2)) == 0
    assert fake.answers["POST /disconnect_worker"] == []
    words = capsys.readouterr().err
    assert words.count("could not be told") == 1
    assert words.count("the service does not answer") == 1
    assert "the service could not be told" in words


def test_a_service_that_does_not_have_it_need_not_be_told(node: type[Node]) -> None:
    """Somebody has taken it off the list."""
    fake = service()
    fake.answers["POST /disconnect_worker"] = (404, {"detail": "no such worker"})
    assert work(fake, Script(2)) == 0
    assert len(fake.bodies("/disconnect_worker")) == 1


def test_gpus_are_told_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the node offers; without memory where nobody knows it."""
    joined = Joined("n1", "10.0.0.2", 4.0, 100.0, 1.0)
    monkeypatch.setattr(module, "gpu_memories", lambda: {"2": 16_000.0, "3": 24_000.0})
    assert resources_of(joined)["gpu_resource"] == {
        "2": {"gpu_id": 2, "gpu_num": 1, "gpu_mem": 16_000.0}
    }
    monkeypatch.setattr(module, "gpu_memories", dict)
    found = resources_of(joined)
    assert found["gpu_resource"] == {"0": {"gpu_id": 0, "gpu_num": 1}}
    assert json.dumps(found)
