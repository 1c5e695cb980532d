"""Where workers leave their notes of attempts that have begun, until the dispatcher collects them.

The notes pass through an actor of their own, because a task can say nothing to its owner before it ends.
They are opaque bytes here, and losing one does no harm: the report of an attempt's end repeats its start.
"""

from __future__ import annotations

import asyncio
from collections import deque

#: Notes kept while nobody collects them; the oldest go first.
MAX_NOTES = 10_000


class Mailbox:
    """The actor's class: notes in, all pending notes out."""

    def __init__(self) -> None:
        self._notes: deque[bytes] = deque(maxlen=MAX_NOTES)
        self._arrived = asyncio.Event()

    async def push(self, note: bytes) -> None:
        """Leaves a note."""
        self._notes.append(note)
        self._arrived.set()

    async def drain(self) -> list[bytes]:
        """All notes, oldest first, as soon as there is one."""
        await self._arrived.wait()
        self._arrived.clear()
        notes = list(self._notes)
        self._notes.clear()
        return notes
