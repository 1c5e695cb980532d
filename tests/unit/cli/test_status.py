"""The table of workers in `lattice status`."""

from __future__ import annotations

from typing import Any

import pytest

from lattice.cli.status import _row


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ({"status": "active", "gone_since": None}, "active"),
        (
            {"status": "lost", "gone_since": "2026-01-02T03:04:05.678901Z"},
            "lost, gone since 2026-01-02T03:04:05Z",
        ),
    ],
)
def test_a_worker_that_is_gone_is_shown_with_its_time(told: dict[str, Any], shown: str) -> None:
    """What is there has its status alone."""
    worker = {"node_id": "n", "node_ip": "10.0.0.2", "resources": {"cpu": 4, "cpu_mem": 1024}}
    assert _row(worker | told) == ("n", "10.0.0.2", shown, "4", "1024 MiB", "0")
