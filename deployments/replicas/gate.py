"""Lets calls through to `@serve.batch` only when a batch of them can run. Bookkeeping on one event loop.

`@serve.batch` cuts a batch before it has a place to run it: behind a running batch, small ones would pile
up. Behind this gate calls wait where they are not cut yet, so that the next batch fills while one runs. A
full batch gains nothing by waiting and goes through ahead of time, so that it runs the moment there is room.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque


class Gate:
    """Lets calls through in batches of `size`, of which `concurrency` run at a time.

    At most one batch forms: calls that went through and are not in a batch yet.
    """

    def __init__(self, size: int, concurrency: int = 1) -> None:
        self._size = size
        self._concurrency = concurrency
        self._running = 0
        self._waiting: deque[tuple[asyncio.Future[bool], bool]] = deque()
        self._forming = 0

    async def enter(self, *, alone: bool = False) -> tuple[bool, float]:
        """Waits for room, in the order of the calls. `alone` takes all of it: a batch of one.

        Cancelled, the call leaves the queue; what was let through and does not get into a batch says so
        by `leave`.

        Returns:
            Whether a batch begins to form with it, and for how many seconds it has waited.
        """
        admitted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry = admitted, alone
        self._waiting.append(entry)
        self._admit()
        if admitted.done():
            return admitted.result(), 0.0
        came = time.monotonic()
        try:
            first = await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.leave(alone=alone)
            else:
                self._waiting.remove(entry)
                self._admit()
            raise
        return first, time.monotonic() - came

    def leave(self, *, alone: bool = False) -> None:
        """Who was let through is gone before its batch was cut."""
        self._forming = max(0, self._forming - (self._size if alone else 1))
        self._admit()

    def begin(self) -> None:
        """The batch that formed is cut, and will run."""
        self._running += 1
        self._forming = 0
        self._admit()

    def end(self) -> None:
        """A batch has run."""
        self._running -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            ahead = self._running - self._concurrency
            full = self._forming + len(self._waiting) >= self._size
            if ahead > 0 or (ahead == 0 and not full):
                return
            admitted, alone = self._waiting[0]
            needed = self._size if alone else 1
            if self._forming + needed > self._size:
                return
            # A cancelled one takes itself out, for which it needs its place in the queue.
            if admitted.cancelled():
                return
            self._waiting.popleft()
            admitted.set_result(self._forming == 0)
            self._forming += needed
