"""Secrets of batched tasks and of LangGraph nodes, as two tenants of one service use them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lattice import LangGraphClient, LatticeClient, RemoteError, ServiceError, task
from lattice.keys import hash_of, new_key
from tests.files import contents
from tests.running import Service, running_service
from tests.service.rest import Rest, pickled

KEYS = {"alice": new_key(), "bob": new_key()}
#: What was in the files, in their order.
VALUES = {who: [f"{who}-s3cr3t-{uuid.uuid4().hex}" for _ in range(2)] for who in KEYS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secret API_KEY of each tenant."""
    folder = tmp_path_factory.mktemp("secrets")
    for who, values in VALUES.items():
        (folder / who).mkdir()
        (folder / who / "API_KEY").write_text(values[0])
    return folder


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Service]:
    """A service with keys and secrets, whose tenants share replicas of what has none."""
    keys = [{"name": who, "sha256": hash_of(key)} for who, key in KEYS.items()]
    with running_service(
        api_keys=keys, secrets_dir=str(folder), batches_across_tenants=True
    ) as service:
        yield service


@task(inputs=["fail"], outputs=["ends"], batch_size=4, secrets=["API_KEY"], resources={"cpu": 0.1})
class Caller:
    """As what calls a model by its API: the key is there for the client that is made once, and for each call."""

    def __init__(self) -> None:
        import os

        self.key = os.environ["API_KEY"]

    def __call__(self, batch: list[dict[str, Any]]) -> list[Any]:
        import os

        print("called with", self.key)
        ends = [self.key[-6:], os.environ["API_KEY"][-6:]]
        return [
            ValueError(f"refused {self.key}") if each["fail"] else {"ends": ends} for each in batch
        ]


def node(fail: bool) -> str:
    import os

    key = os.environ["API_KEY"]
    print("called with", key)
    if fail:
        raise ValueError(f"refused {key}")
    return key[-6:]


class Tenant:
    """Uses the service with its key."""

    def __init__(self, service: Service, who: str) -> None:
        self.client = LatticeClient(service.url, api_key=KEYS[who], timeout=120)
        self.graph = LangGraphClient(service.url, api_key=KEYS[who])
        self.http = httpx.Client(
            base_url=service.url, headers={"authorization": f"Bearer {KEYS[who]}"}, timeout=60
        )

    def batch(self, fail: bool = False) -> tuple[object, str]:
        """What the batched task returns, and all that is told of its run."""
        workflow = self.client.create_workflow()
        handle = workflow.add_task(Caller, inputs={"fail": fail})
        run = workflow.run()
        told = str([*run.events(logs=True)]) + str(run.logs(handle))
        told += self.http.get(f"/runs/{run.run_id}").text
        return None if fail else run.output(handle)["ends"], told


@pytest.fixture
def tenants(guarded: Service) -> Iterator[dict[str, Tenant]]:
    found = {who: Tenant(guarded, who) for who in KEYS}
    yield found
    for each in found.values():
        each.client.close()
        each.graph.close()
        each.http.close()


def test_each_tenant_has_its_own_values_and_nothing_tells_them(
    guarded: Service, folder: Path, tenants: dict[str, Tenant]
) -> None:
    """The same code and name; a new value counts from the next call on; no message, answer, file or log has any."""
    nodes = {who: each.graph.task(secrets=["API_KEY"])(node) for who, each in tenants.items()}
    told = ""
    for number in range(2):
        for who, each in tenants.items():
            value = VALUES[who][number]
            (folder / who / "API_KEY").write_text(value)
            ends, messages = each.batch()
            assert ends == [value[-6:]] * 2
            assert "called with ***" in messages
            told += messages
            assert nodes[who](fail=False) == value[-6:]
    for who, each in tenants.items():
        _, messages = each.batch(fail=True)
        assert "refused ***" in messages
        told += messages
        with pytest.raises(RemoteError, match=r"refused \*\*\*") as failed:
            nodes[who](fail=True)
        told += str(failed.value)
    written = contents(guarded.config.parent)
    assert any(path.name == "lattice.db" for path in written)
    texts = written.values()
    assert any(b"called with ***" in text for text in texts)
    for value in (value for values in VALUES.values() for value in values):
        assert value not in told
        assert not any(value.encode() in text for text in texts)


def test_a_secret_that_is_missing_is_said(folder: Path, tenants: dict[str, Tenant]) -> None:
    """When it is asked for, and when it is gone at the time of the call."""
    alice = tenants["alice"]
    with pytest.raises(ServiceError, match=r"secrets: .*'NO_SUCH'.*secrets_dir") as refused:
        alice.graph.task(secrets=["NO_SUCH"])(node)(fail=False)
    assert refused.value.status == 400
    workflow_id = alice.http.post("/create_workflow").json()["workflow_id"]
    body = {
        "workflow_id": workflow_id,
        "task_type": "langgraph",
        "task_name": "node",
        "code_ser": pickled(len),
        "secrets": ["API_KEY"],
    }
    task_id = alice.http.post("/add_langgraph_task", json=body).json()["task_id"]
    (folder / "alice" / "API_KEY").unlink()
    call = {"workflow_id": workflow_id, "task_id": task_id}
    arguments = {"args": pickled(("four",)), "kwargs": pickled({})}
    answer = alice.http.post("/run_langgraph_task", json=call | arguments)
    assert answer.status_code == 500
    assert "'alice/API_KEY'" in answer.json()["detail"]
    assert "secrets_dir" in answer.json()["detail"]
    (folder / "alice" / "API_KEY").write_text("back")
    with Rest(str(alice.http.base_url)) as rest:
        rest.http.headers = alice.http.headers
        batched = rest.workflow()
        source = "def task(batch):\n    return [{'out': 1} for _ in batch]\n"
        rest.task(batched, "task", source, batch_config={"batch_size": 2}, secrets=["API_KEY"])
        (folder / "alice" / "API_KEY").unlink()
        told = rest.http.get(f"/runs/{rest.run(batched)}/events").text
    (folder / "alice" / "API_KEY").write_text("back")
    assert "a secret of the task cannot be had" in told
    assert "alice/API_KEY" in told
    assert alice.http.post("/run_langgraph_task", json=call | arguments).json()["result"] == 4
