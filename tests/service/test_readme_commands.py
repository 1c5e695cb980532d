"""Every command and program of the README is executed as it stands, against the running service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT, Service

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

#: Commands that other tests or CI execute: the service of this session is started by `make serve`, and
#: these tests are run by `make test`.
ELSEWHERE = {
    "make serve\n",
    ". .venv/bin/activate\nserve run configs/lattice.yaml\n",
    "make check\nmake test\n",
}


def environment(tmp_path: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(tmp_path)}


def local(text: str, service: Service) -> str:
    """The block with the address of this session's service."""
    return text.replace("127.0.0.1:8000", service.url.removeprefix("http://"))


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "python"])
def test_python_programs(service: Service, tmp_path: Path, text: str) -> None:
    """Run as a file, as a user would."""
    program = tmp_path / "first.py"
    program.write_text(local(text, service))
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "{'result': 3}" in done.stdout


COMMANDS = [text for kind, text in BLOCKS if kind == "bash" and text not in ELSEWHERE]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("text", [text for text in COMMANDS if "curl" in text])
def test_curl(service: Service, tmp_path: Path, text: str) -> None:
    """With bash, stopping at the first command that fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", local(text, service)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"result": {"total": 3}' in done.stdout.replace('":', '": ').replace("  ", " ")
    assert '"status":"succeeded"' in done.stdout


EXAMPLES = [line for text in COMMANDS for line in text.splitlines() if "lattice.examples" in line]


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples(service: Service, tmp_path: Path, command: str) -> None:
    """Each ends with success, which it gives only if its own result is right."""
    done = subprocess.run(
        ["bash", "-c", f"{command} --url {service.url}"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_left_out() -> None:
    """A command that is in none of the groups above would be shown and never run."""
    assert {text for kind, text in BLOCKS if kind == "bash"} >= ELSEWHERE
    tried = [text for text in COMMANDS if "curl" in text or "lattice.examples" in text]
    assert tried == COMMANDS
    assert len(EXAMPLES) == 4
