"""What is in the service's database, read as a file and not through the code under test."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Stored:
    """Statuses of runs by id, their messages in order, ids of workflows and nodes, the lease's number."""

    runs: dict[str, str]
    messages: dict[str, list[dict[str, Any]]]
    workflows: frozenset[str]
    nodes: frozenset[str]
    lease: int


def read(file: Path) -> Stored:
    """The content of the database `file`, which may be in use."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        messages = defaultdict(list)
        for run_id, document in database.execute(
            "SELECT run_id, document FROM messages ORDER BY run_id, seq"
        ):
            messages[run_id].append(json.loads(document))
        (lease,) = database.execute("SELECT number FROM lease").fetchone()
        return Stored(
            dict(database.execute("SELECT run_id, status FROM runs").fetchall()),
            dict(messages),
            frozenset(each for (each,) in database.execute("SELECT workflow_id FROM workflows")),
            frozenset(each for (each,) in database.execute("SELECT node_id FROM nodes")),
            lease,
        )
