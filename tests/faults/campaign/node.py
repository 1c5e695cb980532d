"""A second node of the service's cluster, on the same machine: joined as a user joins one, and cut off."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

import httpx
import psutil

from tests.faults.campaign.notes import Notes
from tests.running import ROOT, Service, wait_for


class Node:
    """The node. `notes` gets the ids under which it was registered."""

    def __init__(self, service: Service, notes: Notes) -> None:
        self._service = service
        self._notes = notes
        self._process: subprocess.Popen[bytes] | None = None

    def join(self) -> None:
        """Starts it, waits until the engine has it, and registers it."""
        with httpx.Client(base_url=self._service.url, timeout=30) as http:
            port = http.post("/get_head_ray_port").raise_for_status().json()["port"]
            known = {each["node_id"] for each in self._workers(http)}
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
            new = wait_for("the second node", lambda: self._new(http, known))
            body = {key: new[key] for key in ("node_id", "node_ip")} | {"resources": {"cpu": 1}}
            http.post("/connect_worker", json=body).raise_for_status()
            self._notes.nodes.append(new["node_id"])

    def _workers(self, http: httpx.Client) -> list[dict[str, str]]:
        return http.get("/workers").raise_for_status().json()["workers"]

    def _new(self, http: httpx.Client, known: set[str]) -> dict[str, str] | None:
        assert self._process is not None
        assert self._process.poll() is None, f"ray start ended: {self._service.log}"
        with contextlib.suppress(httpx.HTTPError):
            return next(
                (each for each in self._workers(http) if each["node_id"] not in known), None
            )
        return None

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
