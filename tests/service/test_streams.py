"""Following a run: live, late, from the middle, many at once, and leaving at any time."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import websockets.exceptions
import websockets.sync.client

from tests.running import wait_for
from tests.service.rest import Rest, following, inputs

STEP = "import time\ndef step(p):\n    time.sleep(p['s'])\n    return {'out': 1}\n"
WAITS = """
import os, time
def waits(p):
    while not os.path.exists(p["gate"]):
        time.sleep(0.01)
    return {"out": 1}
"""


def chain(rest: Rest, length: int, seconds: float) -> str:
    """A workflow of tasks one after the other."""
    workflow_id = rest.workflow()
    before = None
    for _ in range(length):
        given = inputs(s=seconds) if before is None else inputs(s=seconds, x=f"@{before}.out")
        before = rest.task(workflow_id, "step", STEP, task_input=given)
    return workflow_id


def test_messages_come_when_they_happen(rest: Rest, tmp_path: Path) -> None:
    """The start of a task is told while it still runs, and its end before the next one's."""
    gates = [tmp_path / "first", tmp_path / "second"]
    workflow_id = rest.workflow()
    # One whose start was told too late would never end.
    waits: dict[str, Any] = {"timeout": 100}
    first = inputs(gate=str(gates[0]))
    task_id = rest.task(workflow_id, "waits", WAITS, task_input=first, **waits)
    second = inputs(gate=str(gates[1]), x=f"@{task_id}.out")
    rest.task(workflow_id, "waits", WAITS, task_input=second, **waits)
    told = (message["type"] for message in rest.stream(workflow_id, rest.run(workflow_id)))
    assert next(told) == "start_task"
    gates[0].touch()
    assert [next(told), next(told)] == ["finish_task", "start_task"]
    gates[1].touch()
    assert [*told] == ["finish_task", "finish_workflow"]


def test_messages_have_the_form_of_the_specification(rest: Rest) -> None:
    """Types and fields of section 5.5, with run id, number and time beside."""
    workflow_id = chain(rest, 1, 0)
    run_id = rest.run(workflow_id)
    start, finish, end = rest.messages(workflow_id, run_id)
    assert [start["type"], finish["type"], end["type"]] == [
        "start_task",
        "finish_task",
        "finish_workflow",
    ]
    assert {"workflow_id", "task_id", "node_ip", "node_id"} <= start["data"].keys()
    assert finish["data"]["result"] == {"out": 1}
    assert end["data"]["run_id"] == run_id
    for seq, message in enumerate((start, finish, end), 1):
        assert message["data"]["seq"] == seq
        assert message["data"]["time"].endswith("Z")


def test_any_number_of_subscribers_at_any_time(rest: Rest) -> None:
    """Early, late and after the end, all see the same; `after` leaves out what was seen."""
    workflow_id = chain(rest, 4, 0.2)
    run_id = rest.run(workflow_id)
    with ThreadPoolExecutor(24) as pool:
        early = [pool.submit(rest.messages, workflow_id, run_id) for _ in range(16)]
        time.sleep(0.4)
        late = [pool.submit(rest.messages, workflow_id, run_id, after) for after in (0, 3)]
        seen = [each.result() for each in early]
        from_start, from_third = (each.result() for each in late)
    assert all(each == seen[0] for each in [*seen, from_start, rest.messages(workflow_id, run_id)])
    assert [message["data"]["seq"] for message in seen[0]] == list(range(1, 10))
    assert from_third == seen[0][3:]
    assert rest.messages(workflow_id, run_id, after=8) == seen[0][8:]
    assert rest.messages(workflow_id, run_id, after=9) == []


def closed(rest: Rest, path: str) -> tuple[int, str]:
    """Code and reason with which a socket is closed at once."""
    with following(rest.url.replace("http", "ws") + path) as opened:
        with pytest.raises(websockets.exceptions.ConnectionClosed) as caught:
            opened.recv(timeout=30)
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code, caught.value.rcvd.reason


def test_how_sockets_are_closed(rest: Rest) -> None:
    """1000 after the last message, 4404 for what is unknown, with the reason."""
    workflow_id = chain(rest, 1, 0)
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)
    nothing = str(uuid.uuid4())
    assert closed(rest, f"/get_workflow_res/{workflow_id}/{run_id}?after=3")[0] == 1000
    code, reason = closed(rest, f"/get_workflow_res/{workflow_id}/{nothing}")
    assert (code, nothing in reason) == (4404, True)
    assert closed(rest, f"/get_workflow_res/{nothing}/{run_id}")[0] == 4404
    code, reason = closed(rest, f"/get_workflow_res/{workflow_id}/{run_id}?after=x")
    assert code == 4400
    assert "after" in reason


def test_a_foreign_page_cannot_open_a_socket(rest: Rest) -> None:
    """The handshake is refused."""
    address = f"{rest.url.replace('http', 'ws')}/get_workflow_res/a/b"
    with (
        pytest.raises(websockets.exceptions.InvalidStatus) as caught,
        websockets.sync.client.connect(address, origin="https://evil.example"),  # type: ignore[arg-type]
    ):
        pass
    assert caught.value.response.status_code == 403


def test_leaving_disturbs_nobody(rest: Rest, tmp_path: Path) -> None:
    """Fifty that leave in the middle, rudely; the run and those who stay are as before."""
    gate = tmp_path / "gate"
    workflow_id = rest.workflow()
    waits = rest.task(workflow_id, "waits", WAITS, task_input=inputs(gate=str(gate)))
    rest.task(workflow_id, "step", STEP, task_input=inputs(s=0, x=f"@{waits}.out"))
    run_id = rest.run(workflow_id)
    address = f"{rest.url.replace('http', 'ws')}/get_workflow_res/{workflow_id}/{run_id}"
    with ExitStack() as stack:
        for _ in range(50):
            leaving = stack.enter_context(following(address))
            leaving.recv(timeout=30)
            leaving.socket.shutdown(socket.SHUT_RDWR)
        stays = stack.enter_context(following(address))
        gate.touch()
        assert len([*stays]) == 5
    assert len(rest.messages(workflow_id, run_id)) == 5


def test_server_sent_events(rest: Rest) -> None:
    """The same messages over plain HTTP, resumed by `Last-Event-ID`."""
    workflow_id = chain(rest, 2, 0.1)
    run_id = rest.run(workflow_id)

    def events(**options: object) -> list[tuple[int, object]]:
        found, number = [], 0
        with rest.http.stream("GET", f"/runs/{run_id}/events", **options) as answer:  # type: ignore[arg-type]
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("id:"):
                    number = int(line[3:])
                if line.startswith("data:"):
                    found.append((number, json.loads(line[5:])))
        return found

    expected = list(enumerate(rest.messages(workflow_id, run_id), 1))
    assert events() == expected
    assert events(headers={"Last-Event-ID": "3"}) == expected[3:]
    assert events(params={"after": 4}) == expected[4:]
    assert rest.http.get(f"/runs/{uuid.uuid4()}/events").status_code == 404


def test_a_stream_with_nothing_to_tell(rest: Rest) -> None:
    """After the last message there is no more, however many ask at a time."""
    workflow_id = chain(rest, 1, 0)
    run_id = rest.run(workflow_id)
    seen = len(rest.messages(workflow_id, run_id))

    def one(_: int) -> tuple[int, str]:
        answer = rest.http.get(f"/runs/{run_id}/events", params={"after": seen})
        return answer.status_code, answer.text.replace(": waiting\n\n", "")

    with ThreadPoolExecutor(20) as pool:
        # A service that is busy opens the stream before it knows that there is nothing.
        assert {*pool.map(one, range(400))} <= {(204, ""), (200, "")}
    assert rest.messages(workflow_id, run_id, after=seen) == []


def test_many_runs_at_once(rest: Rest) -> None:
    """Forty runs of ten tasks, each followed to its end."""
    workflow_id = rest.workflow()
    for _ in range(10):
        rest.task(workflow_id, "step", STEP, task_input=inputs(s=0), resources={"cpu": 0.1})
    ended = []
    lock = threading.Lock()

    def one() -> None:
        with Rest(rest.url) as mine:
            messages = mine.messages(workflow_id, mine.run(workflow_id))
        with lock:
            ended.append((len(messages), messages[-1]["data"]["status"]))

    with ThreadPoolExecutor(40) as pool:
        for each in [pool.submit(one) for _ in range(40)]:
            each.result()
    assert ended == [(21, "succeeded")] * 40
    wait_for(
        "no run to be left",
        lambda: rest.get("/runs", params={"status": "running"})["runs"] == [],
    )
