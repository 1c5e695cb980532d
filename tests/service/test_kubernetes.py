"""What `configs/kuberay.yaml` asks for, made with the commands and the requests of KubeRay, but for Kubernetes itself.

A head without CPUs and a worker are started with `ray start`, with a token. The operator then puts `serveConfigV2` to
the API of the head's dashboard, which here differs in where the database, the values and the port are.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lattice import LatticeClient, task
from lattice.keys import hash_of, new_key
from tests import postgresql
from tests.files import files
from tests.running import ROOT, environ_of, free_port, wait_for

TOKEN = "0123456789abcdef" * 4
KEY = new_key()

pytestmark = pytest.mark.skipif(
    postgresql.binaries() is None, reason="needs the programs of a PostgreSQL server"
)


@task(outputs=["length", "many"])
def make(x: int) -> dict[str, object]:
    return {"length": x, "many": b"x" * x}


@task
def measure(many: bytes) -> int:
    return len(many)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, as Ray puts sockets below it."""
    found = Path(tempfile.mkdtemp(prefix="lk-", dir="/tmp"))
    yield found
    shutil.rmtree(found, ignore_errors=True)


@contextmanager
def node(environ: dict[str, str], log: Path, *options: str) -> Iterator[None]:
    """`ray start`, which KubeRay has blocking in each pod, in the environment of the image."""
    command = f". .venv/bin/activate && exec ray start --block {' '.join(options)}"
    with log.open("wb") as written:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=ROOT,
            env=environ,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Operator:
    """The requests of KubeRay's operator."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def status(self) -> dict[str, Any] | None:
        """What it asks for again and again; None before the head is there."""
        try:
            answer = self._http.get("/applications/")
        except httpx.HTTPError:
            return None
        found: dict[str, Any] | None = answer.json() if answer.status_code == 200 else None
        return found

    def apply(self, config: dict[str, Any]) -> None:
        """Has a configuration served, and waits until it is."""
        answer = self._http.put("/applications/", json=config)
        assert answer.status_code == 200, answer.text

        def runs() -> bool:
            found = self.status()
            application = (found or {}).get("applications", {}).get("lattice")
            assert application is None or application["status"] != "DEPLOY_FAILED", application
            return application is not None and application["status"] == "RUNNING"

        wait_for("the application", runs)


def test_the_manifest_is_served_as_kuberay_does_it(folder: Path) -> None:
    """With keys, PostgreSQL and shared values; tasks run on the worker; and it is changed in place."""
    spec = yaml.safe_load((ROOT / "configs" / "kuberay.yaml").read_text())["spec"]
    cluster = spec["rayClusterConfig"]
    config = yaml.safe_load(spec["serveConfigV2"])
    head_cpus = cluster["headGroupSpec"]["rayStartParams"]["num-cpus"]
    gcs, dashboard, http = free_port(), free_port(), free_port()
    environ = environ_of(folder) | {
        "RAY_AUTH_MODE": cluster["authOptions"]["mode"],
        "RAY_AUTH_TOKEN": TOKEN,
        "LATTICE_API_KEYS": json.dumps([{"name": "alice", "sha256": hash_of(KEY)}]),
    }

    def agent() -> str:
        return f"--dashboard-agent-listen-port={free_port()} --metrics-export-port={free_port()}"

    with ExitStack() as stack:
        server = stack.enter_context(postgresql.server(fsync=False))
        database = stack.enter_context(postgresql.new_database(server))
        arguments = config["applications"][0]["args"]
        arguments |= {"store_url": database, "storage_url": f"file://{folder}/values"}
        config["http_options"] |= {"host": "127.0.0.1", "port": http}
        stack.enter_context(
            node(
                environ,
                folder / "head.log",
                f"--head --port={gcs} --num-cpus={head_cpus} --node-ip-address=127.0.0.1",
                f"--dashboard-port={dashboard} --ray-client-server-port={free_port()} {agent()}",
            )
        )
        address = f"http://127.0.0.1:{dashboard}/api/serve"
        bearer = {"authorization": f"Bearer {TOKEN}"}
        requests = httpx.Client(base_url=address, headers=bearer, timeout=60)
        operator = Operator(stack.enter_context(requests))
        wait_for("the head", operator.status)
        stack.enter_context(
            node(
                environ,
                folder / "worker.log",
                f"--address=127.0.0.1:{gcs} --num-cpus=4 {agent()}",
            )
        )
        operator.apply(config)
        # With which KubeRay finds out which pods requests may go to.
        probe = httpx.get(f"http://127.0.0.1:{http}/-/healthz", timeout=60)
        assert (probe.status_code, probe.text) == (200, "success")

        def reached() -> bool:
            try:
                ready = httpx.get(f"http://127.0.0.1:{http}/readyz", timeout=60)
            except httpx.HTTPError:
                return False
            return ready.status_code == 200

        # HAProxy hears of the application's replicas a moment after they run.
        wait_for("the way to the service", reached)
        assert httpx.post(f"http://127.0.0.1:{http}/create_workflow", timeout=60).status_code == 401
        with LatticeClient(f"http://127.0.0.1:{http}", api_key=KEY) as client:
            workflow = client.create_workflow()
            made = workflow.add_task(make, inputs={"x": 2_000_000})
            workflow.add_task(measure, inputs={"many": made.outputs["many"]})
            before = workflow.run()
            assert before.result()["measure"] == {"result": 2_000_000}
            assert any(each.stat().st_size > 2_000_000 for each in files(folder / "values"))
            arguments["ingress_replicas"] = 1
            operator.apply(config)
            assert workflow.run().result()["measure"] == {"result": 2_000_000}
            assert before.output(made)["length"] == 2_000_000
