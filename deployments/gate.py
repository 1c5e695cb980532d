"""Lets calls through to `@serve.batch` only while no batch runs. Pure bookkeeping on one event loop.

`@serve.batch` cuts a batch before it has a place to run it: behind a running batch, small ones would pile
up. Behind this gate they wait where they are not cut yet, and when the batch has ended, up to a whole
batch of them goes through at once. So the next batch fills while one runs.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Gate:
    """Room for `size` calls until a batch begins; none while it runs."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._room = size
        self._running = False
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()

    @property
    def waiting(self) -> int:
        """Calls that have not been let through."""
        return len(self._waiting)

    async def enter(self, *, alone: bool = False) -> None:
        """Waits for room, in the order of the calls. `alone` takes all of it: a batch of one.

        Cancelled, the call leaves the queue; what was let through and does not get into a batch says so
        by `leave`.
        """
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = admitted, alone
        self._waiting.append(entry)
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.leave(alone=alone)
            else:
                self._waiting.remove(entry)
                self._admit()
            raise

    def leave(self, *, alone: bool = False) -> None:
        """Who was let through is gone before its batch began."""
        if not self._running:
            self._room = min(self._size, self._room + (self._size if alone else 1))
            self._admit()

    def close(self) -> None:
        """A batch begins."""
        self._running = True
        self._room = 0

    def open(self) -> None:
        """The batch has ended."""
        self._running = False
        self._room = self._size
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            admitted, alone = self._waiting[0]
            needed = self._size if alone else 1
            if self._room < needed:
                return
            # A cancelled one takes itself out, for which it needs its place in the queue.
            if admitted.cancelled():
                return
            self._waiting.popleft()
            self._room -= needed
            admitted.set_result(None)
