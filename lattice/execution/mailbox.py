"""Where workers leave their notes of attempts that have begun, and of what these print, until the dispatcher
collects them.

The notes pass through an actor of their own, because a task can say nothing to its owner before it ends.
They are opaque bytes here, and losing one does no lasting harm: a start is told again while the attempt runs, and
the report of its end repeats its start and what it has printed.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque

#: Notes kept while nobody collects them; the oldest go first.
MAX_NOTES = 10_000
#: The same for notes of what was printed, in bytes.
MAX_LOG_BYTES = 16 * 1024 * 1024


def new_owner() -> str:
    """What an orchestrator's dispatcher calls itself: greater than all that have done so before on this machine."""
    return f"{time.time_ns():016x}{uuid.uuid4().hex}"


def new_name(owner: str) -> str:
    """A name for the next mailbox of an owner."""
    return f"mailbox-{owner}-{uuid.uuid4().hex}"


def owner_of(name: str) -> str:
    """Whose mailbox it is; empty, and so before all others, for one of a release whose owners had no names."""
    _, *owner, _ = name.split("-")
    return "".join(owner)


class Mailbox:
    """The actor's class: notes in, all pending notes out."""

    def __init__(self) -> None:
        self._notes: deque[bytes] = deque(maxlen=MAX_NOTES)
        self._logs: deque[bytes] = deque()
        self._log_bytes = 0
        self._arrived = asyncio.Event()

    async def push(self, note: bytes) -> None:
        """Leaves a note."""
        self._notes.append(note)
        self._arrived.set()

    async def push_logs(self, note: bytes) -> None:
        """Leaves a note of what was printed."""
        self._logs.append(note)
        self._log_bytes += len(note)
        while self._log_bytes > MAX_LOG_BYTES:
            self._log_bytes -= len(self._logs.popleft())
        self._arrived.set()

    async def drain(self) -> tuple[list[bytes], list[bytes]]:
        """All notes of starts, and those of what was printed, oldest first, as soon as there is one."""
        await self._arrived.wait()
        self._arrived.clear()
        notes, logs = list(self._notes), list(self._logs)
        self._notes.clear()
        self._logs.clear()
        self._log_bytes = 0
        return notes, logs
