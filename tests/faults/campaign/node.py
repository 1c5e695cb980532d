"""A second node of the service's cluster, on the same machine: joined as a user joins one, and cut off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Any

import httpx
import psutil

from tests.faults.campaign.notes import Notes
from tests.running import PATIENCE, ROOT, Service, wait_for


class Node:
    """The node. `notes` gets the ids under which it was registered."""

    def __init__(self, service: Service, notes: Notes) -> None:
        self._service = service
        self._notes = notes
        self._process: subprocess.Popen[bytes] | None = None

    def join(self) -> None:
        """Starts it, waits until the engine has it, and registers it. The service may still be recovering."""
        with httpx.Client(base_url=self._service.url, timeout=10) as self._http:
            port = self._asked("POST", "/get_head_ray_port")["port"]
            # By the engine's ids: a node with the address of one that was lost is taken for that one.
            known = {each["engine_node_id"] for each in self._workers()} | {None}
            new = wait_for("the second node", lambda: self._new(port, known), 3 * PATIENCE)
            node_id = new["engine_node_id"]
            body = {"node_id": node_id, "node_ip": new["node_ip"], "resources": {"cpu": 1}}
            self._asked("POST", "/connect_worker", json=body)
            self._notes.nodes.append(node_id)

    def _new(self, port: int, known: set[str | None]) -> dict[str, Any] | None:
        """The node, once the engine has it. On a busy machine it may take the engine more than one try."""
        if self._process is None or self._process.poll() is not None:
            self.kill()
            self._start(port)
        time.sleep(0.5)
        found = self._workers()
        return next((each for each in found if each["engine_node_id"] not in known), None)

    def _start(self, port: int) -> None:
        command = (
            ". .venv/bin/activate && exec ray start --block --disable-usage-stats "
            f"--address 127.0.0.1:{port} --num-cpus 1"
        )
        with self._service.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=ROOT,
                # A cluster that `serve run` starts has a token.
                env={**self._service.environ, "RAY_AUTH_MODE": "token"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _asked(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer to a request that may be sent any number of times."""

        def ask() -> dict[str, Any] | None:
            with contextlib.suppress(httpx.HTTPError):
                answer = self._http.request(method, path, **options)
                if answer.status_code == 200:
                    return dict(answer.json())
            return None

        return dict(wait_for(f"an answer to {path}", ask))

    def _workers(self) -> list[dict[str, Any]]:
        return list(self._asked("GET", "/workers")["workers"])

    def processes(self) -> list[psutil.Process]:
        """Its own processes, the raylet first."""
        if self._process is None or not psutil.pid_exists(self._process.pid):
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self._process.pid).children(recursive=True)
            return sorted(found, key=lambda each: "raylet" not in each.name())
        return []

    def kill(self) -> None:
        """All its processes at once, as when the machine loses power."""
        if self._process is None:
            return
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # Which cluster this machine has joined last: on a machine of its own the note would be gone with the
        # node, and here a service that starts anew would look for that cluster and not make one.
        (self._service.config.parent / "ray" / "ray_current_cluster").unlink(missing_ok=True)
