"""What tasks print and log is kept with their run, and told while they run."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lattice
from tests.running import Service, wait_for
from tests.service.rest import Rest, following

#: Waits until the test makes a file, for at most two minutes.
WAIT = """
import os, time
def wait(path):
    for _ in range(1200):
        if os.path.exists(path):
            return
        time.sleep(0.1)
    raise SystemExit("nobody made the file")
"""

BATCH = {"enabled": True, "batch_size": 2, "batch_timeout": 0.2}


def pages(rest: Rest, run_id: str, task_id: str, **query: object) -> list[dict[str, Any]]:
    """All that is kept of a task's logs."""
    found: list[dict[str, Any]] = []
    while True:
        page = rest.get(f"/runs/{run_id}/tasks/{task_id}/logs", params=query)
        found += page["logs"]
        if page["next"] is None:
            return found
        query["after"] = page["next"]


def joined(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries with neighbours of one stream put together, as what was told meanwhile does not grow."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        if found and found[-1]["stream"] == entry["stream"] != "log":
            found[-1]["text"] += entry["text"]
        else:
            found.append(dict(entry))
    return found


def text(entries: list[dict[str, Any]]) -> str:
    return "".join(entry["text"] for entry in entries)


def ran(rest: Rest, code: str | object, **fields: object) -> tuple[str, str, list[dict[str, Any]]]:
    """A run of one task to its end: the ids of run and task, and the messages."""
    workflow_id = rest.workflow()
    task_id = rest.task(workflow_id, "task", code, **fields)
    run_id = rest.run(workflow_id)
    return run_id, task_id, rest.messages(workflow_id, run_id)


def stream(rest: Rest, workflow_id: str, run_id: str) -> Iterator[dict[str, Any]]:
    """Messages over the WebSocket, with logs."""
    address = f"{rest.url.replace('http', 'ws')}/get_workflow_res/{workflow_id}/{run_id}"
    with following(f"{address}?logs=true") as socket:
        for message in socket:
            yield json.loads(message)


SPEAKS = """
import asyncio, logging, sys, threading
logging.basicConfig(level=logging.INFO)
def task(params):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    logging.getLogger("mine").info("logged %d", 7)
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("caught")
    thread = threading.Thread(target=print, args=("in a thread",))
    thread.start()
    thread.join()
    async def say():
        await asyncio.to_thread(print, "in a coroutine's thread")
    asyncio.run(say())
    return {"out": 1}
"""


@pytest.mark.parametrize("batched", [False, True], ids=["ray_task", "replica"])
def test_what_a_task_prints_is_kept(rest: Rest, batched: bool) -> None:
    """Print, standard error, records of loggers with their tracebacks, from threads and coroutines too."""
    code = SPEAKS.replace('return {"out": 1}', 'return [{"out": 1}] * len(params)')
    fields = {"batch_config": BATCH} if batched else {}
    run_id, task_id, messages = ran(rest, code if batched else SPEAKS, **fields)
    assert messages[-1]["data"]["status"] == "succeeded", messages
    entries = joined(pages(rest, run_id, task_id))
    assert [(entry["stream"], entry["level"], entry["logger"]) for entry in entries] == [
        ("stdout", None, None),
        ("stderr", None, None),
        ("log", "INFO", "mine"),
        ("log", "ERROR", "root"),
        ("stdout", None, None),
    ]
    assert [entry["text"] for entry in entries[:3]] == ["to stdout\n", "to stderr\n", "logged 7\n"]
    assert entries[3]["text"].startswith("caught\nTraceback")
    assert entries[3]["text"].endswith("ZeroDivisionError: division by zero\n")
    assert entries[4]["text"] == "in a thread\nin a coroutine's thread\n"
    assert all(entry["attempt"] == 1 and entry["cut"] == 0 for entry in entries)
    assert entries[0]["time"].endswith("Z")


def test_a_task_that_prints_nothing_has_none(rest: Rest) -> None:
    """And the answer for what is not there says what is not there."""
    run_id, task_id, _ = ran(rest, "def task(p):\n    return {'out': 1}\n")
    assert rest.get(f"/runs/{run_id}/tasks/{task_id}/logs") == {
        "status": "success",
        "logs": [],
        "next": None,
    }
    for path, status, word in (
        (f"/runs/{run_id}/tasks/nothing/logs", 404, "nothing"),
        (f"/runs/nobody/tasks/{task_id}/logs", 404, "nobody"),
        (f"/runs/{run_id}/tasks/{task_id}/logs?after=x", 400, "after"),
        (f"/runs/{run_id}/tasks/{task_id}/logs?attempt=0", 422, "attempt"),
    ):
        answer = rest.http.get(path)
        assert answer.status_code == status
        assert word in answer.text


def test_the_items_of_a_batch_share_what_it_prints(rest: Rest) -> None:
    code = "def task(batch):\n    print('batch of', len(batch))\n    return [{'out': 1}] * len(batch)\n"
    workflow_id = rest.workflow()
    policy = {"enabled": True, "batch_size": 2, "batch_timeout": 30}
    ids = [rest.task(workflow_id, "task", code, batch_config=policy) for _ in range(2)]
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)
    assert [text(pages(rest, run_id, each)) for each in ids] == ["batch of 2\n"] * 2


CONSTRUCTS = """
import logging
print("module")
class Model:
    def __init__(self):
        logging.getLogger("mine").warning("constructor")
    def __call__(self, params):
        print("call")
        return {"out": 1}
"""


def test_what_a_class_prints_in_its_constructor_comes_with_its_first_call(rest: Rest) -> None:
    """Once, as it is constructed once for all the calls of its replica."""
    workflow_id = rest.workflow()
    scaling = {"max_replicas": 1, "downscale_delay": 60.0}
    task_id = rest.task(
        workflow_id, "Model", CONSTRUCTS, resources={"cpu": 0.1}, autoscaling=scaling
    )
    found = []
    for _ in range(2):
        run_id = rest.run(workflow_id)
        rest.messages(workflow_id, run_id)
        found.append(pages(rest, run_id, task_id))
    assert [text(entries) for entries in found] == ["module\nconstructor\ncall\n", "call\n"]
    (constructor,) = (entry for entry in found[0] if entry["stream"] == "log")
    assert (constructor["level"], constructor["logger"]) == ("WARNING", "mine")
    times = [entry["time"] for entry in found[0]]
    assert times == sorted(times)


def test_what_a_class_prints_whose_constructor_fails_is_kept(rest: Rest) -> None:
    """It is constructed for all who wait for it, and has no call, so one of them has it."""
    code = CONSTRUCTS.replace("def __call__", "    raise OSError('no')\n    def __call__")
    workflow_id = rest.workflow()
    ids = [rest.task(workflow_id, "Model", code, resources={"cpu": 0.1}) for _ in range(2)]
    run_id = rest.run(workflow_id)
    last = rest.messages(workflow_id, run_id)[-1]
    assert last["data"]["status"] == "failed"
    silent, told = sorted((pages(rest, run_id, each) for each in ids), key=len)
    assert silent == []
    assert text(told) == "module\nconstructor\n"
    (constructor,) = (entry for entry in told if entry["stream"] == "log")
    assert (constructor["level"], constructor["logger"]) == ("WARNING", "mine")


def test_an_attempt_that_fails_shows_what_it_printed(rest: Rest) -> None:
    """Each attempt by itself, and one alone on request."""
    code = "def task(p):\n    print('about to fail\\n', end='')\n    raise OSError('no')\n"
    run_id, task_id, messages = ran(rest, code, retry={"max_attempts": 2, "backoff": 0})
    assert messages[-1]["data"]["status"] == "failed"
    entries = pages(rest, run_id, task_id)
    assert [(entry["attempt"], entry["text"]) for entry in entries] == [
        (1, "about to fail\n"),
        (2, "about to fail\n"),
    ]
    assert pages(rest, run_id, task_id, attempt=2) == entries[1:]


@pytest.mark.parametrize("batched", [False, True], ids=["ray_task", "replica"])
def test_an_attempt_that_times_out_shows_what_it_printed(rest: Rest, batched: bool) -> None:
    """It is ended, and reports no end."""
    code = "import time\ndef task(p):\n    print('about to hang\\n', end='')\n    time.sleep(600)\n"
    fields = {"batch_config": BATCH} if batched else {}
    run_id, task_id, messages = ran(rest, code, timeout=5, **fields)
    assert messages[-2]["data"]["error"]["type"] == "TaskTimeoutError"
    wait_for("its words", lambda: text(pages(rest, run_id, task_id)) == "about to hang\n")


@pytest.mark.parametrize("batched", [False, True], ids=["ray_task", "replica"])
def test_an_attempt_that_is_killed_shows_what_it_printed(
    rest: Rest, tmp_path: Path, batched: bool
) -> None:
    """As far as it was told: here the process dies when the test has seen that."""
    go = tmp_path / "go"
    code = f"""{WAIT}
import signal
def task(p):
    if os.path.exists({str(go)!r}):
        return [{{"out": 1}}] if isinstance(p, list) else {{"out": 1}}
    print("about to die\\n", end="")
    wait({str(go)!r})
    os.kill(os.getpid(), {signal.SIGKILL})
"""
    workflow_id = rest.workflow()
    fields = {"batch_config": BATCH} if batched else {}
    task_id = rest.task(workflow_id, "task", code, **fields)
    run_id = rest.run(workflow_id)
    for message in stream(rest, workflow_id, run_id):
        if message["type"] == "task_log":
            assert message["data"]["text"] == "about to die\n"
            go.touch()
    assert message["data"]["status"] == "succeeded"
    entries = pages(rest, run_id, task_id)
    assert [(entry["attempt"], entry["text"]) for entry in entries] == [(1, "about to die\n")]


@pytest.mark.parametrize("batched", [False, True], ids=["ray_task", "replica"])
def test_lines_come_while_the_task_runs(rest: Rest, tmp_path: Path, batched: bool) -> None:
    """In both forms of the stream; the task goes on only when the test has seen that it began, and its first line."""
    begin, go = tmp_path / "begin", tmp_path / "go"
    code = f"""{WAIT}
def task(p):
    wait({str(begin)!r})
    print("first\\n", end="")
    wait({str(go)!r})
    print("second\\n", end="")
    return [{{"out": 1}}] if isinstance(p, list) else {{"out": 1}}
"""
    workflow_id = rest.workflow()
    fields = {"batch_config": BATCH} if batched else {}
    task_id = rest.task(workflow_id, "task", code, **fields)
    run_id = rest.run(workflow_id)
    seen: list[dict[str, Any]] = []
    with rest.http.stream("GET", f"/runs/{run_id}/events?logs=true", timeout=120) as events:
        lines = (line[6:] for line in events.iter_lines() if line.startswith("data: "))
        for message in stream(rest, workflow_id, run_id):
            seen.append(message)
            if message["type"] == "start_task":
                begin.touch()
            if message["type"] == "task_log" and message["data"]["text"] == "first\n":
                assert text(pages(rest, run_id, task_id)) == "first\n"
                go.touch()
        assert [json.loads(line) for line in lines] == seen
    assert [message["type"] for message in seen] == [
        "start_task",
        "task_log",
        "task_log",
        "finish_task",
        "finish_workflow",
    ]
    assert [message["data"].get("seq") for message in seen] == [1, None, None, 2, 3]
    data = seen[1]["data"]
    assert (data["run_id"], data["task_id"], data["attempt"]) == (run_id, task_id, 1)
    assert (data["stream"], data["text"], data["cut"]) == ("stdout", "first\n", 0)
    without = [message for message in seen if message["type"] != "task_log"]
    assert rest.messages(workflow_id, run_id) == without
    # Late, what was printed comes first.
    late = [*stream(rest, workflow_id, run_id)]
    assert late[2:] == without
    assert text([message["data"] for message in late[:2]]) == "first\nsecond\n"


def test_a_task_that_prints_without_end_is_bounded(rest: Rest) -> None:
    """Of 50 MB the beginning and the end are kept; how much is missing is said."""
    code = """
def task(p):
    for number in range(500_000):
        print(f"{number:06d}", "x" * 92)
    print("the end")
    return {"out": 1}
"""
    run_id, task_id, messages = ran(rest, code)
    assert messages[-1]["data"]["status"] == "succeeded"
    entries = pages(rest, run_id, task_id)
    lines = text(entries).splitlines()
    assert lines[0].startswith("000000 x")
    assert lines[-2].startswith("499999 x")
    assert lines[-1] == "the end"
    kept = sum(len(entry["text"]) for entry in entries)
    assert 48 * 1024 < kept <= 64 * 1024
    assert sum(entry["cut"] for entry in entries) == 500_000 * 100 + 8 - kept


def test_logs_go_with_their_run(rest: Rest) -> None:
    run_id, task_id, _ = ran(rest, "def task(p):\n    print('x')\n    return {'out': 1}\n")
    assert text(pages(rest, run_id, task_id)) == "x\n"
    assert rest.http.delete(f"/runs/{run_id}").status_code == 200
    assert rest.http.get(f"/runs/{run_id}/tasks/{task_id}/logs").status_code == 404


def test_logs_by_the_sdk(service: Service) -> None:
    """`run.logs` after the end, `run.events(logs=True)` while it runs, however late."""

    @lattice.task(outputs=["out"])
    def speak() -> dict[str, int]:
        print("hello\n", end="")
        return {"out": 1}

    with lattice.LatticeClient(service.url) as client:
        workflow = client.create_workflow("speaks")
        speaking = workflow.add_task(speak)
        run = workflow.run()
        events = [*run.events(logs=True, timeout=120)]
        printed = [event for event in events if isinstance(event, lattice.TaskLog)]
        assert [(event.task, event.text, event.stream) for event in printed] == [
            ("speak", "hello\n", "stdout")
        ]
        assert [entry.text for entry in run.logs(speaking)] == ["hello\n"]
        assert [*run.events(timeout=120)] == [event for event in events if event not in printed]
