"""The application without Serve: under plain uvicorn, with its orchestrator in the same process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.running import ROOT, free_port, wait_for
from tests.service.rest import Rest, inputs


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one, as Ray puts sockets below it."""
    found = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    yield found
    shutil.rmtree(found, ignore_errors=True)


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "uvicorn",
                "--factory",
                "lattice.api.server:create_app",
                "--port",
                str(port),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "RAY_TMPDIR": str(folder),
                "LATTICE_DATA_DIR": str(folder / "data"),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-4000:]
        try:
            return http.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    with httpx.Client() as http:
        wait_for("uvicorn", ready)
    return process


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_under_uvicorn(folder: Path, end: signal.Signals) -> None:
    """Runs work, both signals end it cleanly in the middle of a run, and a new start goes on."""
    port = free_port()
    process = start(folder, port)
    with Rest(f"http://127.0.0.1:{port}") as rest:
        workflow_id = rest.workflow()
        first = rest.task(workflow_id, "first", "def first(p):\n    return {'out': 20}\n")
        rest.task(
            workflow_id,
            "second",
            "import time\ndef second(p):\n    time.sleep(2)\n    return {'out': p['x'] + 1}\n",
            task_input=inputs(x=f"@{first}.out"),
        )
        run_id = rest.run(workflow_id)
        stream = rest.stream(workflow_id, run_id)
        begun = [next(stream) for _ in range(3)]
        process.send_signal(end)
        # Ray's own handler ends the process with the signal's number.
        assert process.wait(60) in (0, -end, end)
        assert "Traceback" not in (folder / "log").read_text()
        process = start(folder, port)
        messages = rest.messages(workflow_id, run_id)
        assert messages[:3] == begun
        assert messages[-2]["data"]["result"] == {"out": 21}
        assert messages[-1]["data"]["status"] == "succeeded"
    process.send_signal(end)
    process.wait(60)
