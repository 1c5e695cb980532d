"""Group commit: the writes of everybody become durable together, in the order in which they came.

While one group is being committed in a thread, the next collects; so durability costs each write a
share of one commit, and the event loop never waits for the disk. A commit that fails, or a defect in
what is done after one, is final: nothing
more is accepted, and the process that owns the journal is expected to be replaced and to recover
from what is durable.

A group without writes is committed too: the store then only looks at the lease. So what was read
after a `barrier` is the word of the one in charge, not of one that was replaced and does not know it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lattice.errors import LatticeError, StoreUnavailableError
from lattice.ports.environment import Clock, Telemetry
from lattice.ports.store import Store, Write

_log = logging.getLogger(__name__)

_CLOSED = StoreUnavailableError("the orchestrator has stopped")


@dataclass(frozen=True, slots=True)
class _Entry:
    writes: Sequence[Write]
    then: Callable[[], None] | None
    done: asyncio.Future[None]


class Journal:
    """Commits writes to a store under one lease, off the event loop."""

    def __init__(
        self,
        store: Store,
        lease: int,
        clock: Clock,
        telemetry: Telemetry,
        on_failure: Callable[[LatticeError], None],
    ) -> None:
        self._store = store
        self._lease = lease
        self._clock = clock
        self._telemetry = telemetry
        self._pending: list[_Entry] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._failure: LatticeError | None = None
        self._on_failure = on_failure
        # One thread: groups are committed one after another, and never behind someone's slow read.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writer = asyncio.create_task(self._run(), name="journal")

    @property
    def failure(self) -> LatticeError | None:
        """Why nothing is accepted any more; None while all is well."""
        return self._failure

    def append(
        self, writes: Sequence[Write], then: Callable[[], None] | None = None
    ) -> asyncio.Future[None]:
        """Takes writes; returns at once. `then` is called on the loop once they are durable.

        The future ends with the commit, or with its error. Calls of `then` come in the order of
        the writes, before the future's.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever does not await the future learns of a failure from `failure`.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        failure = self._failure or (_CLOSED if self._writer.done() else None)
        if failure is not None:
            done.set_exception(failure)
            return done
        self._pending.append(_Entry(writes, then, done))
        self._wake.set()
        return done

    async def barrier(self) -> None:
        """Waits until all that was appended before is durable, and the lease was seen to be held.

        Raises what the commit raised.
        """
        if self._failure is not None:
            raise self._failure
        await self.append(())

    async def close(self) -> None:
        """Commits what is pending, then stops."""
        self._closing = True
        self._wake.set()
        await self._writer
        self._thread.shutdown()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            group, self._pending = self._pending, []
            if group:
                writes = [write for entry in group for write in entry.writes]
                try:
                    began = self._clock.now()
                    await loop.run_in_executor(
                        self._thread, self._store.commit, self._lease, writes
                    )
                    if writes:
                        self._telemetry.committed(len(writes), self._clock.now() - began)
                    for entry in group:
                        if entry.then is not None:
                            entry.then()
                        if not entry.done.done():
                            entry.done.set_result(None)
                except Exception as error:
                    _log.exception("the journal stops")
                    self._fail(error, group)
                    return
            if self._closing and not self._pending:
                return

    def _fail(self, error: Exception, group: list[_Entry]) -> None:
        if not isinstance(error, LatticeError):
            error = StoreUnavailableError(f"a commit failed: {type(error).__name__}: {error}")
        self._failure = error
        for entry in [*group, *self._pending]:
            if not entry.done.done():
                entry.done.set_exception(error)
        self._pending.clear()
        self._on_failure(error)
