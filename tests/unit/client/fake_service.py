"""A service that is played by this process: answers requests, tells what a run's sockets should say."""

from __future__ import annotations

import base64
import json
import pickle
import platform
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import cloudpickle

from lattice.client.service import Service
from lattice.client.subscription import LostError
from lattice.client.transport import Request, Response

URL = "http://127.0.0.1:8000"

#: What a fake answers: a status with a JSON document or bytes, or an exception to raise.
Answer = tuple[int, Any] | Response | Exception


class FakeTime:
    """Time that only passes when somebody waits."""

    def __init__(self) -> None:
        self.at = 0.0
        self.pauses: list[float] = []

    def now(self) -> float:
        return self.at

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.at += seconds


class FakeService:
    """A transport that answers by itself. `requests` are those that came, `answers` come first.

    Tasks of submitted workflows are not run; functions are called in this process.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.timeouts: list[float | None] = []
        self._lock = threading.Lock()
        #: Answers by "METHOD path"; a list is used up one by one.
        self.answers: dict[str, list[Answer] | Answer] = {}
        self.functions: dict[str, Any] = {}
        self.closed = False
        self.time = FakeTime()
        self.sockets = FakeSockets()

    def service(self, timeout: float = 30.0) -> Service:
        return Service(
            URL,
            timeout,
            self,
            open_socket=self.sockets.open,
            now=self.time.now,
            pause=self.time.pause,
        )

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The documents that came to a path."""
        return [json.loads(r.body or b"{}") for r in self.requests if r.path == path]

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    def send(self, request: Request, timeout: float | None) -> Response:
        with self._lock:
            self.requests.append(request)
            self.timeouts.append(timeout)
            count = len(self.requests)
        answer = self.answers.get(f"{request.method} {request.path}")
        if isinstance(answer, list):
            answer = answer.pop(0) if answer else None
        if answer is None:
            answer = self._default(request, count)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Response):
            return answer
        status, content = answer
        return Response(
            status, content if isinstance(content, bytes) else json.dumps(content).encode()
        )

    def close(self) -> None:
        self.closed = True

    def _default(self, request: Request, count: int) -> Answer:
        document = json.loads(request.body or b"{}")
        match request.path:
            case "/healthz":
                return 200, {
                    "status": "ok",
                    "version": "1",
                    "python": platform.python_version(),
                    "cloudpickle": cloudpickle.__version__,
                }
            case "/submit_workflow":
                return 200, {"workflow_id": f"w{count}", "run_id": f"r{count}"}
            case "/run_workflow":
                return 200, {"run_id": f"r{count}"}
            case "/create_workflow":
                return 200, {"workflow_id": f"w{count}"}
            case "/add_langgraph_task":
                self.functions[f"t{count}"] = pickle.loads(base64.b64decode(document["code_ser"]))
                return 200, {"task_id": f"t{count}"}
            case "/run_langgraph_task":
                return self._call(document)
        return 404, {"detail": f"nothing at {request.path}"}

    def _call(self, document: Mapping[str, str]) -> Answer:
        if document["task_id"] not in self.functions:
            return 404, {"detail": f"Task {document['task_id']} not found"}
        args = pickle.loads(base64.b64decode(document["args"]))
        kwargs = pickle.loads(base64.b64decode(document["kwargs"]))
        try:
            result = self.functions[document["task_id"]](*args, **kwargs)
            if hasattr(result, "send"):
                try:
                    result.send(None)
                except StopIteration as stop:
                    result = stop.value
        except Exception:
            return 500, {"detail": traceback.format_exc()}
        return 200, {"result": base64.b64encode(cloudpickle.dumps(result)).decode()}


class FakeSockets:
    """Plays one script after another, a new one for each connection, the last again and again.

    A script is a list of messages and exceptions. Messages that are not after the number asked for are
    left out, as the service does.
    """

    def __init__(self) -> None:
        self.scripts: list[list[str | Exception]] = []
        #: What comes first over each connection, whatever is asked for.
        self.always: list[str | Exception] = []
        self.urls: list[str] = []

    def open(self, url: str, timeout: float) -> AbstractContextManager[FakeSocket]:
        self.urls.append(url)
        if self.always:
            return FakeSocket(self.always)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if script and isinstance(script[0], ConnectionRefusedError):
            raise LostError(str(script[0]))
        after = int(url.rpartition("after=")[2])
        return FakeSocket([m for m in script if not isinstance(m, str) or seq_of(m) > after])


class FakeSocket(AbstractContextManager["FakeSocket"]):
    """One connection."""

    def __init__(self, script: list[str | Exception]) -> None:
        self._script: Iterator[str | Exception] = iter(script)

    def __exit__(self, *exc_info: object) -> None:
        return None

    def receive(self, timeout: float | None) -> str | bytes:
        item = next(self._script, LostError("closed"))
        if isinstance(item, Exception):
            raise item
        return item


def seq_of(message: str) -> int:
    seq: int = json.loads(message)["data"]["seq"]
    return seq


class Log:
    """Writes a run's messages, numbered."""

    def __init__(self, run_id: str = "r1") -> None:
        self.run_id = run_id
        self.messages: list[str] = []

    def add(self, kind: str, **data: object) -> Log:
        common = {
            "run_id": self.run_id,
            "workflow_id": "w",
            "seq": len(self.messages) + 1,
            "time": "t",
        }
        self.messages.append(json.dumps({"type": kind, "data": common | data}))
        return self

    def start(self, task_id: str) -> Log:
        return self.add("start_task", task_id=task_id, attempt=1, node_id="n", node_ip="1.2.3.4")

    def finish(self, task_id: str, **result: object) -> Log:
        return self.start(task_id).add("finish_task", task_id=task_id, attempt=1, result=result)

    def fail(self, task_id: str, error_type: str, message: str, text: str) -> Log:
        error = {"type": error_type, "message": message, "traceback": text}
        return self.start(task_id).add(
            "task_exception", task_id=task_id, attempt=1, result=message, error=error
        )

    def end(self, status: str = "succeeded") -> Log:
        return self.add("finish_workflow", status=status)
