"""REST and WebSocket as the specification writes them, with as little help as tests need."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Self

import cloudpickle
import httpx
import websockets.sync.client

from tests.running import PATIENCE


def inputs(**values: object) -> dict[str, Any]:
    """`task_input` of values; a text that begins with `@` is a reference."""
    params: dict[str, Any] = {}
    for number, (key, value) in enumerate(values.items(), 1):
        reference = isinstance(value, str) and value.startswith("@")
        params[str(number)] = {
            "key": key,
            "input_schema": "from_task" if reference else "from_user",
            "data_type": "Any",
            "value": value[1:] if isinstance(value, str) and reference else value,
        }
    return {"input_params": params}


def outputs(*keys: str) -> dict[str, Any]:
    """`task_output` of keys."""
    return {
        "output_params": {
            str(number): {"key": key, "data_type": "Any"} for number, key in enumerate(keys, 1)
        }
    }


def pickled(value: object) -> str:
    """Base64 of the cloudpickle of `value`."""
    return base64.b64encode(cloudpickle.dumps(value)).decode()


def following(address: str, **options: Any) -> websockets.sync.client.ClientConnection:
    """A WebSocket whose other end may be so busy that it is slow to answer."""
    socket: websockets.sync.client.ClientConnection = websockets.sync.client.connect(
        address, open_timeout=PATIENCE, ping_timeout=PATIENCE, **options
    )
    return socket


class Rest:
    """A client of one service."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=300)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, path: str, body: object = None, **options: Any) -> dict[str, Any]:
        """The JSON of a successful POST."""
        answer = self.http.post(path, json=body, **options)
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        assert document["status"] == "success"
        return document

    def get(self, path: str, **options: Any) -> Any:
        """The JSON of a successful GET."""
        answer = self.http.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, body: object, **options: Any) -> tuple[int, str]:
        """Status and detail of a POST that is refused."""
        answer = self.http.post(path, json=body, **options)
        assert answer.status_code >= 400, answer.text
        return answer.status_code, answer.json()["detail"]

    def workflow(self) -> str:
        """A new workflow's id."""
        return str(self.post("/create_workflow")["workflow_id"])

    def task(self, workflow_id: str, name: str, code: str | object, **fields: object) -> str:
        """A new task, added and saved with source or a function; its id."""
        body = {"workflow_id": workflow_id, "task_type": "code", "task_name": name}
        task_id = str(self.post("/add_task", body)["task_id"])
        self.save(workflow_id, task_id, code, **fields)
        return task_id

    def save(self, workflow_id: str, task_id: str, code: str | object, **fields: object) -> None:
        """Saves a task with source or a function."""
        given = {"code_str": code} if isinstance(code, str) else {"code_ser": pickled(code)}
        body = {
            "workflow_id": workflow_id,
            "task_id": task_id,
            "task_input": inputs(),
            "task_output": outputs("out"),
            **given,
            **fields,
        }
        self.post("/save_task_and_add_edge", body)

    def run(self, workflow_id: str) -> str:
        """A new run's id."""
        return str(self.post("/run_workflow", {"workflow_id": workflow_id})["run_id"])

    def messages(self, workflow_id: str, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        """All messages of a run after `after`, from the WebSocket, until it is closed."""
        return list(self.stream(workflow_id, run_id, after))

    def stream(self, workflow_id: str, run_id: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """The messages of a run as they come."""
        address = f"{self.url.replace('http', 'ws')}/get_workflow_res/{workflow_id}/{run_id}"
        with following(f"{address}?after={after}") as socket:
            for text in socket:
                yield json.loads(text)

    def outcome(self, code: str | object, **fields: object) -> dict[str, Any]:
        """The message that ends the only task of a new workflow, and checks of the whole run."""
        workflow_id = self.workflow()
        self.task(workflow_id, "task", code, **fields)
        messages = self.messages(workflow_id, self.run(workflow_id))
        assert [message["data"]["seq"] for message in messages] == [*range(1, len(messages) + 1)]
        assert messages[-1]["type"] == "finish_workflow"
        return messages[-2]
