"""API keys and tenants on the real service: requests, sockets, batches, processes, and what is written of keys."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from lattice import LangGraphClient, LatticeClient, ServiceError, task
from lattice.keys import hash_of, new_key
from tests.files import contents
from tests.running import Service, running_service, wait_for
from tests.service.rest import Rest
from tests.service.test_browser import needs_browser, number_of_runs, page_for, tried

ALICE, BOB, OPS, STRANGER = (new_key() for _ in range(4))
KEYS = [
    {"name": "alice", "sha256": hash_of(ALICE)},
    {"name": "bob", "sha256": hash_of(BOB)},
    {"name": "ops", "sha256": hash_of(OPS), "admin": True},
]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Service]:
    """A service that has keys, and so may be reached from the network."""
    with running_service(host="0.0.0.0", api_keys=KEYS) as service:
        yield service


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@task
def whose(x: int) -> dict[str, object]:
    import os

    return {"tenant": os.environ["LATTICE_TENANT"], "process": os.getpid(), "x": x}


@task(inputs=["x"], outputs=["seen"], batch_size=8, batch_timeout=0.5)
def together(batch):  # type: ignore[no-untyped-def]  # of the shape that the service calls
    import os

    return [{"seen": [os.getpid(), sorted(item["x"] for item in batch)]} for _ in batch]


def run_of(client: LatticeClient, function: object, *xs: int) -> list[object]:
    """What the function returns for each of `xs`, in one run."""
    workflow = client.create_workflow()
    handles = [workflow.add_task(function, inputs={"x": x}) for x in xs]  # type: ignore[arg-type]
    run = workflow.run()
    assert [type(event).__name__ for event in run.events()][-1] == "FinishWorkflow"
    return [run.output(handle) for handle in handles]


def test_the_sdk_works_with_a_key_and_not_without(
    guarded: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given, or in the environment; runs are followed over a WebSocket, values fetched, functions called."""
    with LatticeClient(guarded.url, api_key=ALICE) as client:
        (found,) = run_of(client, whose, 1)
        assert found["result"]["tenant"] == "alice"  # type: ignore[index]
    monkeypatch.setenv("LATTICE_API_KEY", BOB)
    with LatticeClient(guarded.url) as client:
        (found,) = run_of(client, whose, 1)
        assert found["result"]["tenant"] == "bob"  # type: ignore[index]
    with LangGraphClient(guarded.url) as graph:
        assert graph.task(lambda x: x + 1)(1) == 2
    for wrong in ("", STRANGER):
        monkeypatch.setenv("LATTICE_API_KEY", wrong)
        with LatticeClient(guarded.url) as client, pytest.raises(ServiceError) as refused:
            run_of(client, whose, 1)
        assert refused.value.status == 401
        assert "lattice key NAME" in str(refused.value)


def test_with_keys_it_may_be_reached_from_the_network(guarded: Service) -> None:
    """Under any name, by who has one; without keys it would not have started (`test_exposure.py`)."""
    assert httpx.get(f"{guarded.url}/runs", timeout=60).status_code == 401
    headers = {**bearer(ALICE), "host": "lattice.example"}
    assert httpx.get(f"{guarded.url}/runs", headers=headers, timeout=60).status_code == 200


def test_another_tenants_ids_name_nothing(guarded: Service) -> None:
    with LatticeClient(guarded.url, api_key=ALICE) as client:
        workflow = client.create_workflow()
        workflow.add_task(whose, inputs={"x": 1}, name="t")
        run = workflow.run()
        run.result()
    paths = [
        f"/runs/{run.run_id}",
        f"/runs/{run.run_id}/events",
        f"/runs/{run.run_id}/tasks/t/result",
    ]
    with httpx.Client(base_url=guarded.url, timeout=60) as http:
        for path in paths:
            unknown = http.get(path.replace(run.run_id, "nope"), headers=bearer(BOB))
            hers = http.get(path, headers=bearer(BOB))
            assert hers.status_code == unknown.status_code == 404
            assert hers.json()["detail"] == unknown.json()["detail"].replace("nope", run.run_id)
            assert http.get(path).status_code == 401
        listed = {
            key: http.get("/runs", headers=bearer(key)).json()["runs"] for key in (ALICE, BOB, OPS)
        }
    ids = {key: {each["run_id"] for each in runs} for key, runs in listed.items()}
    assert run.run_id in ids[ALICE] & ids[OPS]
    assert not ids[ALICE] & ids[BOB]


def test_a_browser_brings_its_key_as_a_subprotocol(guarded: Service) -> None:
    """Through the proxy in front of the service, too."""
    with LatticeClient(guarded.url, api_key=ALICE) as client:
        workflow = client.create_workflow()
        workflow.add_task(whose, inputs={"x": 1})
        run = workflow.run()
        run.result()
    url = f"{guarded.url.replace('http', 'ws')}/get_workflow_res/{run.workflow_id}/{run.run_id}"

    def offer(key: str) -> list[Subprotocol]:
        return [Subprotocol("lattice"), Subprotocol(f"lattice.bearer.{key}")]

    with connect(url, subprotocols=offer(ALICE)) as socket:
        assert socket.subprotocol == "lattice"
        assert "finish_workflow" in str(list(socket)[-1])
    with connect(url, subprotocols=offer(BOB)) as socket:
        with pytest.raises(ConnectionClosedError):
            socket.recv()
        assert socket.close_code == 4404
    for options in (
        {},
        {"subprotocols": offer(STRANGER)},
        {"additional_headers": bearer(STRANGER)},
    ):
        with pytest.raises(InvalidStatus) as refused, connect(url, **options):  # type: ignore[arg-type]
            pass
        assert refused.value.response.status_code in (401, 403)


@needs_browser
def test_with_keys_a_page_needs_one_and_then_may_be_of_any_site(
    guarded: Service, tmp_path: Path
) -> None:
    """The key gets there as a header and as a subprotocol; an EventSource can carry none."""
    with Rest(guarded.url) as rest:
        with_key = page_for(rest, ALICE)
        without = with_key.replace(ALICE, new_key())
        before = number_of_runs(rest, ALICE)
        found = tried(without, "evil.example", tmp_path)
        assert {found["read"], found["run"], found["delete"], found["read from a frame"]} == {401}
        assert {found["socket"], found["events"]} == {"closed"}
        assert number_of_runs(rest, ALICE) == before
        found = tried(with_key, "app.example", tmp_path)
        assert {found["read"], found["run"], found["read under another name"]} == {200}
        assert found["socket"] == "open"
        assert found["events"] == "closed"


def test_tenants_share_neither_batches_nor_processes(guarded: Service) -> None:
    """The same function of both, at the same time; of one, calls of two runs do meet."""

    def ask(key: str, start: int) -> list[object]:
        with LatticeClient(guarded.url, timeout=120, api_key=key) as client:
            return run_of(client, together, *range(start, start + 4))

    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(ask, (ALICE, BOB, ALICE), (0, 10, 20)))
    seen: dict[str, list[list[int]]] = {"alice": [], "bob": []}
    processes: dict[str, set[int]] = {"alice": set(), "bob": set()}
    for name, outputs in zip(("alice", "bob", "alice"), results, strict=True):
        for output in outputs:
            process, batch = output["seen"]  # type: ignore[index]
            processes[name].add(process)
            seen[name].append(batch)
    assert not processes["alice"] & processes["bob"]
    assert all(x in range(10, 20) for batch in seen["bob"] for x in batch)
    assert not any(x in range(10, 20) for batch in seen["alice"] for x in batch)
    with (
        LatticeClient(guarded.url, api_key=ALICE) as alice,
        LatticeClient(guarded.url, api_key=BOB) as bob,
    ):
        found = {
            name: {each["result"]["process"] for each in run_of(client, whose, *range(6))}  # type: ignore[index]
            for name, client in (("alice", alice), ("bob", bob))
        }
    assert not found["alice"] & found["bob"]


def test_nodes_and_metrics_are_the_operators(guarded: Service) -> None:
    with httpx.Client(base_url=guarded.url, timeout=60) as http:
        for path in ("/metrics", "/workers"):
            codes = [http.get(path, headers=bearer(key)).status_code for key in (ALICE, OPS)]
            assert codes == [403, 200], path
            assert http.get(path).status_code == 401
        for path in ("/healthz", "/readyz"):
            wait_for(path, lambda path=path: http.get(path).status_code == 200)


def test_no_key_is_written_anywhere(guarded: Service) -> None:
    """Not to a log of any process, nor to the database, nor into an event; it has all the tests before behind it."""
    with httpx.Client(base_url=guarded.url, timeout=60) as http:
        assert http.get("/runs", headers=bearer(STRANGER)).status_code == 401
        assert http.post("/run_workflow", headers=bearer(ALICE), json={}).status_code == 422
    written = contents(guarded.config.parent)
    assert any(path.suffix == ".db" for path in written)
    assert sum("replica_lattice" in path.name for path in written) > 1, "Serve's logs are looked at"
    assert [path for path, data in written.items() if _holds_a_key(data)] == []


def _holds_a_key(data: bytes) -> bool:
    return any(key.encode() in data for key in (ALICE, BOB, OPS, STRANGER))
