"""The few ids that all requests share, so that requests meet: a run is deleted while another retries it."""

from __future__ import annotations

import json
import threading
from random import Random
from typing import Any

#: How many of each are shared at a time; what comes takes the place of another.
WORKFLOWS = 6
TASKS = 6
RUNS = 10

NOBODY = "00000000-0000-4000-8000-000000000000"


class Pool:
    """Ids that the service gave, in slots. The slot is chosen by the request, what is in it by the answers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workflows = [NOBODY] * WORKFLOWS
        self._tasks = [[NOBODY] * TASKS for _ in range(WORKFLOWS)]
        self._nodes = [NOBODY] * WORKFLOWS
        self._runs = [(NOBODY, NOBODY)] * RUNS

    def workflow(self, rng: Random) -> tuple[int, str]:
        """A workflow's slot and id."""
        slot = rng.randrange(WORKFLOWS)
        return slot, self._workflows[slot]

    def task(self, rng: Random, slot: int) -> str:
        """A task of the workflow in a slot; seldom one of another."""
        slot = rng.choice([slot] * 20 + [*range(WORKFLOWS)])
        return rng.choice(self._tasks[slot])

    def node(self, slot: int) -> str:
        """The LangGraph task of the workflow in a slot."""
        return self._nodes[slot]

    def run(self, rng: Random) -> tuple[str, str]:
        """A run and its workflow."""
        return rng.choice(self._runs)

    def learn(self, learns: str, slot: int, place: int, sent: str, body: bytes) -> None:
        """Takes the ids out of the answer to a request that made something."""
        document: dict[str, Any] = json.loads(body)
        with self._lock:
            if learns == "workflow":
                self._workflows[slot] = document["workflow_id"]
                self._tasks[slot] = [NOBODY] * TASKS
                self._nodes[slot] = NOBODY
            elif learns == "task" and sent == self._workflows[slot]:
                self._tasks[slot][place % TASKS] = document["task_id"]
            elif learns == "node" and sent == self._workflows[slot]:
                self._nodes[slot] = document["task_id"]
            elif learns in ("run", "whole"):
                workflow_id = document.get("workflow_id", sent)
                self._runs[place % RUNS] = document["run_id"], workflow_id
                if learns == "whole":
                    self._workflows[slot] = workflow_id
                    self._tasks[slot] = [f"t{number}" for number in range(TASKS)]
                    self._nodes[slot] = NOBODY
