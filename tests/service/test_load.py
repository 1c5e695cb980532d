"""The load test itself, short and with one user of each kind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.running import ROOT


def test_a_service_keeps_the_limits_under_load(tmp_path: Path) -> None:
    """No failure, no run lost, no message missed; the reports are written."""
    results = tmp_path / "results"
    command = [sys.executable, "-m", "loadtests.load", "--users", "10", "--seconds", "30"]
    done = subprocess.run(
        [*command, "--results", str(results)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<html" in (results / "load.html").read_text()[:1_000]
    for name in ("load_stats.csv", "load_failures.csv", "memory.csv", "runs.txt", "service.log"):
        assert (results / name).exists(), name
