"""The command `lattice` against the real service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lattice.cli.main import main
from lattice.versions import release
from tests.running import ROOT, Service, free_port
from tests.service.rest import Rest, inputs

TALKS = """
def talk(params):
    print(f"one of {params['n']}\\ntwo\\n", end="")
    return {"out": 1}
"""
FAILS = "def fails(params):\n    raise ValueError('the disk is made of cheese')\n"
WAITS = """
def waits(params):
    import os, time
    print("begins", flush=True)
    while not os.path.exists(params["path"]):
        time.sleep(0.05)
    print("ends")
    return {"out": 1}
"""


def lattice(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "lattice.cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def said(
    capsys: pytest.CaptureFixture[str], service: Service, *arguments: str, status: int = 0
) -> str:
    """What the command prints in this process."""
    capsys.readouterr()
    assert main([*arguments, "--url", service.url]) == status
    return capsys.readouterr().out


def test_the_command_as_a_user_starts_it(service: Service) -> None:
    """Its version; the address from the environment or the option; the commands that there are."""
    assert lattice("--version").stdout == f"lattice {release()}\n"
    answer = lattice("status", "--url", service.url)
    assert answer.returncode == 0, answer.stderr
    first, _, table = answer.stdout.split("\n", 2)
    assert first.startswith(f"{service.url}: Lattice {release()}, Python 3.")
    assert first.endswith(", ready")
    assert table.splitlines()[0].split() == ["WORKER", "ADDRESS", "STATUS", "CPU", "MEMORY", "GPU"]
    assert "unregistered" in table
    for command in ("status", "runs", "logs", "cancel", "worker"):
        assert command in lattice("--help").stdout


def test_a_service_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Is said in words, not in a traceback."""
    assert main(["runs", "--url", f"http://127.0.0.1:{free_port()}"]) == 1
    words = capsys.readouterr().err
    assert words.startswith("lattice runs: no answer from http://127.0.0.1:")
    assert main(["runs", "--url", "nonsense"]) == 1
    assert "url: found 'nonsense'" in capsys.readouterr().err


def test_runs_and_the_tasks_of_one(
    service: Service, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Newest first, with their status; of a task what it waits for or why it failed."""
    workflow_id = rest.workflow()
    rest.task(workflow_id, "fails", FAILS)
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)
    rows = said(capsys, service, "runs", "--limit", "1").splitlines()
    assert len(rows) == 2
    assert rows[1].split()[:2] == [run_id, "failed"]
    assert run_id not in said(capsys, service, "runs", "--status", "succeeded")
    rows = said(capsys, service, "runs", run_id).splitlines()
    assert rows[0] == f"{run_id} failed"
    assert rows[2].split()[0] == "fails"
    assert rows[2].endswith("failed  the disk is made of cheese")
    assert main(["runs", "nobody", "--url", service.url]) == 1
    assert "Run nobody not found" in capsys.readouterr().err


def test_logs_of_a_run_and_of_one_task(
    service: Service, rest: Rest, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the task's name before each line where there are several."""
    workflow_id = rest.workflow()
    for name in ("talk1", "talk2"):
        rest.task(workflow_id, name, TALKS.replace("talk", name), task_input=inputs(n=name))
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)
    lines = said(capsys, service, "logs", run_id).splitlines()
    assert sorted(lines) == [
        "talk1: one of talk1",
        "talk1: two",
        "talk2: one of talk2",
        "talk2: two",
    ]
    assert said(capsys, service, "logs", run_id, "talk2") == "one of talk2\ntwo\n"
    assert said(capsys, service, "logs", "--follow", run_id, "talk2") == "one of talk2\ntwo\n"
    # Names need not be unique.
    rest.task(workflow_id, "talk2", TALKS.replace("talk", "talk2"), task_input=inputs(n="namesake"))
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)
    lines = said(capsys, service, "logs", run_id, "talk2").splitlines()
    assert sorted(lines) == [
        "talk2: one of namesake",
        "talk2: one of talk2",
        "talk2: two",
        "talk2: two",
    ]
    assert main(["logs", run_id, "talk3", "--url", service.url]) == 1
    assert "talk3" in capsys.readouterr().err


def test_logs_are_followed_while_a_task_runs(service: Service, rest: Rest, tmp_path: Path) -> None:
    """Until the run has ended."""
    workflow_id = rest.workflow()
    rest.task(workflow_id, "waits", WAITS, task_input=inputs(path=str(tmp_path / "go")))
    run_id = rest.run(workflow_id)
    with subprocess.Popen(
        [sys.executable, "-m", "lattice.cli.main", "logs", "-f", run_id, "--url", service.url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        (tmp_path / "go").touch()
        assert process.stdout.read() == "ends\n"
        assert process.wait(60) == 0


def test_runs_are_cancelled(
    service: Service, rest: Rest, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Several at once; one that has ended stays as it is."""
    workflow_id = rest.workflow()
    rest.task(workflow_id, "waits", WAITS, task_input=inputs(path=str(tmp_path / "go")))
    run_id = rest.run(workflow_id)
    done = rest.workflow()
    rest.task(done, "talk", TALKS, task_input=inputs(n=1))
    ended = rest.run(done)
    rest.messages(done, ended)
    said_of = said(capsys, service, "cancel", run_id, ended)
    assert said_of == f"{run_id} cancelled\n{ended} succeeded\n"
