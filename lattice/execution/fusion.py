"""Short attempts of a run that share one call of a worker: what the call costs is paid once for all of them.

They run one after the other, and each keeps its own events, its own errors and its own attempts. Some come after
others of the same call, whose outputs they then get at once. Nobody waits for long because of the company: what
has ended is told when the call ends, or as soon as one of the attempts takes longer than a moment; then that
one has the call for itself, and those behind it are given back.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence

from lattice.execution import wire
from lattice.execution.assignment import Assignment
from lattice.ids import TaskId
from lattice.ports.execution import Argument
from lattice.workflow.events import TaskLost, TaskSucceeded, Value

#: Seconds after which no further attempt of a call is begun.
_LONGEST = 0.01
#: Bytes of reports after which no further attempt is begun.
_MOST_BYTES = 1024 * 1024


class Fusion:
    """The attempts of one call, in their order."""

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._until = time.monotonic() + _LONGEST
        self._room = _MOST_BYTES
        self._ends: dict[int, bytes] = {}
        self._values: dict[TaskId, Mapping[str, Value]] = {}
        self._next = 0
        # What follows is also looked at by the thread that tells of attempts that take long.
        self._lock = threading.Lock()
        self._current: int | None = None
        self._over = False

    def next(self) -> Assignment | None:
        """The attempt to run now, with its arguments; None if no more is to be run here."""
        with self._lock:
            while not self._over and self._next < len(self._assignments):
                place = self._next
                self._next += 1
                if self._values.keys() >= set(self._assignments[place].after):
                    self._current = place
                    return self._given(self._assignments[place])
            return None

    def _given(self, assignment: Assignment) -> Assignment:
        if not assignment.after:
            return assignment
        arguments = tuple(self._filled(argument) for argument in assignment.arguments)
        return dataclasses.replace(assignment, arguments=arguments)

    def _filled(self, argument: Argument) -> Argument:
        if argument.source is None or argument.value is not None:
            return argument
        task_id, key = argument.source
        return dataclasses.replace(argument, value=self._values[task_id][key])

    def ended(self, frame: bytes, *, large: bool) -> None:
        """The current attempt has ended, as `frame` reports; `large`: with outputs that are passed by reference."""
        with self._lock:
            assert self._current is not None
            self._ends[self._current] = frame
            self._current = None
            if self._next == len(self._assignments):
                return
            self._room -= len(frame)
            end = wire.decode_end(wire.split_logs(frame)[1])
            # One that was interrupted is perhaps cancelled, and those behind it, too.
            if large or isinstance(end, TaskLost) or self._room < 0:
                self._over = True
            if time.monotonic() > self._until:
                self._over = True
            if isinstance(end, TaskSucceeded):
                self._values[end.task_id] = end.values

    def alone(self, assignment: Assignment) -> bytes | None:
        """Gives the call to the attempt that runs: no other is begun here.

        Returns:
            The frame of the ends so far; None if that attempt has ended meanwhile.
        """
        with self._lock:
            current = None if self._current is None else self._assignments[self._current]
            if current is None or current.task_id != assignment.task_id:
                return None
            self._over = True
            return self.frame()

    def frame(self) -> bytes:
        """The frame of all ends so far."""
        return wire.encode_ends(self._ends)
