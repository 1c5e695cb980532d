"""Worker machines that join, get work, leave in order, die in the middle of runs, and come back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from lattice.cli.worker import _LOOK, _SETTLE
from tests.machines import Machine, Worker, machine
from tests.running import PATIENCE, ROOT, Service, running_service, wait_for
from tests.service.rest import Rest, inputs, pickled

#: Begins with a mark, ends when it may, and says where it ran.
HELD = """
import pathlib, time

def work(params):
    folder = pathlib.Path(params["folder"])
    (folder / f"began-{params['n']}").touch()
    while not (folder / "go").exists():
        time.sleep(0.05)
    return {"out": params["n"]}
"""
#: More CPUs than the head has, so that only workers can have it.
LARGE = {"cpu": (os.cpu_count() or 1) + 1}
#: Seconds after which a worker that leaves has looked more than once whether anything runs there.
LOOKED = _SETTLE + 4 * _LOOK
#: A worker with room for one of those at a time.
ROOM = f"--num-cpus={(os.cpu_count() or 1) + 2}"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service that other machines reach, and that waits a little for nodes that were lost."""
    with running_service(
        host="0.0.0.0",
        no_node_seconds=60,
        housekeeping_seconds=1,
        allowed_hosts=["*"],
        allow_unauthenticated_network_access=True,
    ) as service:
        yield service


@pytest.fixture(scope="module")
def first() -> Iterator[Machine]:
    with machine(1) as made:
        yield made


@pytest.fixture(scope="module")
def second() -> Iterator[Machine]:
    with machine(2) as made:
        yield made


@pytest.fixture
def rest(service: Service) -> Iterator[Rest]:
    with Rest(service.url) as rest:
        yield rest


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """The workers of a test, which end with it."""
    made: list[Worker] = []
    yield made
    for worker in made:
        worker.close()


def start(rest: Rest, folder: Path, *numbers: int, **fields: Any) -> tuple[str, str]:
    """A run of independent tasks that are held; the ids of workflow and run."""
    workflow_id = rest.workflow()
    for n in numbers:
        given = inputs(n=n, folder=str(folder))
        rest.task(
            workflow_id, f"work{n}", HELD.replace("work", f"work{n}"), task_input=given, **fields
        )
    return workflow_id, rest.run(workflow_id)


def begun(folder: Path) -> set[int]:
    return {int(path.name.removeprefix("began-")) for path in folder.glob("began-*")}


def tasks(rest: Rest, run_id: str) -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in rest.get(f"/runs/{run_id}")["run"]["tasks"]}


def is_taken_back(found: dict[str, dict[str, Any]]) -> bool:
    """Whether what is queued, of which there is something, waits for what only the worker has."""
    words = [task["waiting_for"] or "" for task in found.values() if task["state"] == "queued"]
    return bool(words) and all(each.startswith("a larger node: CPU") for each in words)


def listed(rest: Rest, node_id: str) -> dict[str, Any] | None:
    found = rest.get("/workers")["workers"]
    return next((each for each in found if each["node_id"] == node_id), None)


def test_a_worker_joins_gets_work_and_leaves_when_that_is_done(
    service: Service, rest: Rest, first: Machine, workers: list[Worker], tmp_path: Path
) -> None:
    """What waits is taken back and says so; what runs ends; then the node is gone and the command ends with 0."""
    workers.append(worker := Worker(service, first, ROOM, "--memory=1000"))
    found = listed(rest, worker.node_id)
    assert found is not None
    assert found["status"] == "active"
    assert found["resources"] == {"cpu": LARGE["cpu"] + 1, "cpu_mem": 1000, "gpu_resource": {}}
    if first.ip is not None:
        assert found["node_ip"] == first.ip
    workflow_id, run_id = start(rest, tmp_path, 1, resources=LARGE)
    wait_for("the first task", lambda: begun(tmp_path) == {1})
    # There is room for one at a time: this one waits in the engine, for the place on the worker.
    _, waits = start(rest, tmp_path, 2, resources=LARGE)
    wait_for(
        "its turn",
        lambda: (tasks(rest, waits)["work2"]["waiting_for"] or "").startswith("a free CPU"),
    )
    # The key is the operator's, and what runs on the node is everybody's.
    names, environs = [], []
    for process in psutil.Process(worker.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            names.append(process.name())
            environs.append(process.environ())
    assert any("raylet" in name for name in names)
    assert not any("LATTICE_API_KEY" in environ for environ in environs)
    worker.process.send_signal(signal.SIGTERM)
    worker.says("leaving")
    wait_for(
        "it to be disconnected",
        lambda: (listed(rest, worker.node_id) or {}).get("status") == "disconnected",
    )
    wait_for("what waits to be taken back", lambda: is_taken_back(tasks(rest, waits)))
    assert worker.process.poll() is None
    (tmp_path / "go").touch()
    messages = rest.messages(workflow_id, run_id)
    assert messages[-1]["data"]["status"] == "succeeded"
    assert messages[0]["data"]["node_id"] == worker.node_id
    assert "task_retry" not in {message["type"] for message in messages}
    assert worker.process.wait(120) == 0, worker.log.read_text()
    assert worker.log.read_text().rstrip().endswith("left")
    assert begun(tmp_path) == {1}
    wait_for("the node to be forgotten", lambda: listed(rest, worker.node_id) is None)
    rest.post(f"/runs/{waits}/cancel")


def test_a_worker_that_leaves_waits_for_langgraph_calls(
    service: Service, rest: Rest, first: Machine, workers: list[Worker], tmp_path: Path
) -> None:
    """They are in no run, and nobody would run them again."""

    def held(n: int, folder: str) -> int:
        import pathlib
        import time

        (pathlib.Path(folder) / f"began-{n}").touch()
        while not (pathlib.Path(folder) / "go").exists():
            time.sleep(0.05)
        return n

    held.__module__ = "__main__"
    workers.append(worker := Worker(service, first, ROOM))
    _ = worker.node_id
    node = {"task_type": "langgraph", "task_name": "held", "code_ser": pickled(held)}
    call = dict[str, Any](workflow_id=rest.workflow())
    call["task_id"] = rest.post("/add_langgraph_task", call | node | {"resources": LARGE})[
        "task_id"
    ]
    call |= {"args": pickled((1, str(tmp_path))), "kwargs": pickled({})}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(rest.post, "/run_langgraph_task", call)
        try:
            wait_for("the call", lambda: begun(tmp_path) == {1})
            worker.process.send_signal(signal.SIGTERM)
            worker.says("leaving")
            wait_for(
                "it to be counted", lambda: (listed(rest, worker.node_id) or {}).get("running") == 1
            )
            with pytest.raises(subprocess.TimeoutExpired):
                worker.process.wait(LOOKED)
        finally:
            (tmp_path / "go").touch()
        assert answer.result()["result"] == 1
    assert worker.process.wait(120) == 0, worker.log.read_text()


def test_a_disconnected_worker_gets_nothing_until_it_is_connected_again(
    service: Service, rest: Rest, first: Machine, workers: list[Worker], tmp_path: Path
) -> None:
    """Also for what became ready while no node was to be had; nothing fails meanwhile."""
    workers.append(worker := Worker(service, first, ROOM))
    node_id = worker.node_id
    workflow_id, run_id = start(rest, tmp_path, 1, 2, resources=LARGE)
    wait_for("a task", lambda: len(begun(tmp_path)) == 1)
    rest.post("/disconnect_worker", {"node_id": node_id})
    wait_for("what waits to be taken back", lambda: is_taken_back(tasks(rest, run_id)))
    (tmp_path / "go").touch()
    wait_for(
        "its end", lambda: "succeeded" in {task["state"] for task in tasks(rest, run_id).values()}
    )
    assert len(begun(tmp_path)) == 1
    worker.says("somebody has disconnected it")
    found = listed(rest, node_id)
    assert found is not None
    rest.post("/connect_worker", {key: found[key] for key in ("node_id", "node_ip", "resources")})
    messages = rest.messages(workflow_id, run_id)
    assert messages[-1]["data"]["status"] == "succeeded"
    assert "task_retry" not in {message["type"] for message in messages}


def test_a_worker_that_dies_is_replaced_in_the_middle_of_a_run(
    service: Service,
    rest: Rest,
    first: Machine,
    second: Machine,
    workers: list[Worker],
    tmp_path: Path,
) -> None:
    """What ran there is told, waits with a reason, and is run again on the worker that comes."""
    workers.append(worker := Worker(service, first, ROOM))
    _ = worker.node_id
    workflow_id, run_id = start(rest, tmp_path, 1, resources=LARGE)
    wait_for("word of its start", lambda: tasks(rest, run_id)["work1"]["state"] == "running")
    worker.kill()
    wait_for(
        "what it waits for",
        lambda: (tasks(rest, run_id)["work1"]["waiting_for"] or "").startswith("a larger node"),
    )
    lost = listed(rest, worker.node_id)
    assert lost is not None
    assert lost["status"] == "lost"
    assert lost["gone_since"] is not None
    (tmp_path / "go").touch()
    workers.append(other := Worker(service, second, ROOM))
    messages = rest.messages(workflow_id, run_id)
    assert messages[-1]["data"]["status"] == "succeeded", messages
    assert [message["type"] for message in messages] == [
        "start_task",
        "task_retry",
        "start_task",
        "finish_task",
        "finish_workflow",
    ]
    assert messages[1]["data"]["error"]["message"] == "the node that ran the task died"
    assert messages[2]["data"]["node_id"] == other.node_id


def test_a_worker_leaves_while_it_joins() -> None:
    """What does not answer at the head's port is not waited for, and nothing is left of the node."""

    class Head(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.dumps({"status": "success", "port": silent.getsockname()[1]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ThreadingHTTPServer(("127.0.0.1", 0), Head) as head,
    ):
        threading.Thread(target=head.serve_forever, daemon=True).start()
        command = [sys.executable, "-m", "lattice.cli.main", "worker", "--head"]
        command.append(f"http://127.0.0.1:{head.server_address[1]}")
        with subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as worker:
            children = psutil.Process(worker.pid).children
            wait_for("the node", children)
            node = children()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(PATIENCE) == 0
        head.shutdown()
    assert psutil.wait_procs(node, timeout=PATIENCE)[1] == []


def test_a_gpu_worker_that_dies_fails_what_nobody_else_can_run(
    service: Service, rest: Rest, first: Machine, workers: list[Worker], tmp_path: Path
) -> None:
    """After the time for which it may come back, with the reason; GPUs are registered with their memory."""
    workers.append(worker := Worker(service, first, "--num-cpus=1", gpus=(16_000, 24_000)))
    found = listed(rest, worker.node_id)
    assert found is not None
    gpus = found["resources"]["gpu_resource"]
    assert [gpu["gpu_mem"] for gpu in gpus.values()] == [16_000, 24_000]
    workflow_id, run_id = start(rest, tmp_path, 1, resources={"gpu_mem": 12_000, "cpu": 0.1})
    wait_for("the task", lambda: begun(tmp_path) == {1})
    worker.kill()
    messages = rest.messages(workflow_id, run_id)
    assert messages[-1]["data"]["status"] == "failed"
    failed = messages[-2]["data"]
    assert failed["error"]["type"] == "NoNodeError", messages
    assert "resources.gpu_mem of the task: found 12000 MiB asked" in failed["result"]
    assert "the cluster has had no such node for" in failed["result"]
