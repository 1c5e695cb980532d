"""Clients that submit runs by the SDK, follow them, and note everything that they are told.

Each is a thread that does one thing after another: it submits a workflow, follows the run to its end and
asks for the results; some runs it cancels in the middle and then retries, some it runs a second time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from lattice import LatticeClient, LatticeError, Run, Workflow
from tests.faults.campaign.notes import Notes, RunNotes
from tests.faults.campaign.shapes import SHAPES, Expected, chain

#: Seconds that a client waits for the service: longer than any outage, so that every error counts.
PATIENCE = 450.0

#: What a client may do with a workflow beside running it once.
CANCELLED, AGAIN = "cancelled", "again"
_KINDS = (*SHAPES, CANCELLED, AGAIN)


class Client(threading.Thread):
    """One client. What it does is drawn from `seed`; how far it gets is not."""

    def __init__(self, url: str, marks: Path, notes: Notes, seed: str, stop: threading.Event):
        super().__init__(name=f"client-{seed}", daemon=True)
        self._url = url
        self._marks = marks
        self._notes = notes
        self._seed = seed
        self._stop_asked = stop

    def run(self) -> None:
        """Until it is to stop; the last run is followed to its end."""
        chance = random.Random(self._seed)
        with LatticeClient(self._url, timeout=PATIENCE) as client:
            for number in range(1_000_000):
                if self._stop_asked.is_set():
                    return
                # Each kind once before any comes again, in an order of the client's own.
                kinds = random.Random(f"{self._seed}-{number // len(_KINDS)}").sample(
                    _KINDS, len(_KINDS)
                )
                nonce = f"{self._seed}-{number}"
                try:
                    self._do(client, kinds[number % len(kinds)], nonce, chance)
                except LatticeError as error:
                    self._notes.errors.append(f"{nonce}: {type(error).__name__}: {error}")

    def _do(self, client: LatticeClient, kind: str, nonce: str, chance: random.Random) -> None:
        if kind == CANCELLED:
            self._cancel(client, nonce, chance)
            return
        shape = SHAPES[chance.choice(("chain", "batch")) if kind == AGAIN else kind]
        workflow, expected = shape(client, self._marks, nonce, chance)
        for _ in range(2 if kind == AGAIN else 1):
            run, notes = self._start(workflow, kind, nonce, expected)
            self._follow(run, notes)

    def _cancel(self, client: LatticeClient, nonce: str, chance: random.Random) -> None:
        """Cancels a run in the middle and retries it: what has finished is taken over."""
        workflow, expected = chain(client, self._marks, nonce, chance, links=8)
        run, notes = self._start(workflow, CANCELLED, nonce, expected)
        when = chance.randrange(1, 14)
        for event in run.events():
            notes.tell(event)
            if event.seq == when:
                notes.cancelled = run.cancel()
        if notes.status != "cancelled":
            notes.results = run.result()
            return
        asked = time.time()
        again = self._asked(run.retry)
        retry = self._noted(again, "retry", nonce, expected, asked)
        retry.names = notes.names
        self._follow(again, retry)
        if chance.random() < 0.5:
            run.delete()
            notes.deleted = True

    def _start(
        self, workflow: Workflow, shape: str, nonce: str, expected: Expected
    ) -> tuple[Run, RunNotes]:
        asked = time.time()
        run = self._asked(workflow.run)
        notes = self._noted(run, shape, nonce, expected, asked)
        notes.names = {task.task_id: task.name for task in workflow.tasks}
        return run, notes

    def _asked(self, ask: Callable[[], Run]) -> Run:
        """The answer to a request for a run; one that gets none is counted."""
        try:
            return ask()
        except LatticeError:
            self._notes.unanswered += 1
            raise

    def _noted(
        self, run: Run, shape: str, nonce: str, expected: Expected, asked: float
    ) -> RunNotes:
        notes = RunNotes(
            run.run_id, run.workflow_id, shape, nonce, {}, asked, time.time(), expected
        )
        self._notes.runs.append(notes)
        return notes

    def _follow(self, run: Run, notes: RunNotes) -> None:
        for event in run.events():
            notes.tell(event)
        if notes.status == "succeeded":
            notes.results = run.result()
