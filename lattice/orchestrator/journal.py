"""Group commit: the writes of everybody become durable together, in the order in which they came.

While one group is being committed in a thread, the next collects; so durability costs each write a
share of one commit, and the event loop never waits for the disk.

A database that is away for a while is asked again until it is back, for the same group under the same
number, so that a commit whose answer was lost is not done twice. Meanwhile whoever waits is told so, and
what the runs write is kept. A commit that is refused, a lost lease, or a defect in what is done after a
commit is final: nothing more is accepted, and the process that owns the journal is expected to be
replaced and to recover from what is durable.

A group without writes is committed too: the store then only looks at the lease. So what was read
after a `barrier` is the word of the one in charge, not of one that was replaced and does not know it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lattice.errors import LatticeError, StoreRefusedError, StoreUnavailableError
from lattice.ports.environment import Clock, Telemetry
from lattice.ports.store import Store, Write

_log = logging.getLogger(__name__)

_CLOSED = StoreUnavailableError("the orchestrator has stopped")

#: The first and the longest wait before a database that is away is asked again, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: A commit that takes longer than this counts as an outage until it ends, in seconds.
_PATIENCE = 10.0
_LATE = StoreUnavailableError(f"a commit has not ended within {_PATIENCE:g} s")


@dataclass(frozen=True, slots=True)
class _Entry:
    writes: Sequence[Write]
    then: Callable[[], None] | None
    done: asyncio.Future[None]


class Journal:
    """Commits writes to a store under one lease, off the event loop.

    Args:
        on_failure: is told why nothing is accepted any more.
        on_outage: is told that the database is away, and that it is back.
    """

    def __init__(
        self,
        store: Store,
        lease: int,
        clock: Clock,
        telemetry: Telemetry,
        on_failure: Callable[[LatticeError], None],
        on_outage: Callable[[bool], None],
    ) -> None:
        self._store = store
        self._lease = lease
        self._clock = clock
        self._telemetry = telemetry
        self._pending: list[_Entry] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._failure: LatticeError | None = None
        self._outage: StoreUnavailableError | None = None
        #: What is being committed, and the number of the last group that had writes.
        self._group: list[_Entry] = []
        self._number = 0
        self._on_failure = on_failure
        self._on_outage = on_outage
        # One thread: groups are committed one after another, and never behind someone's slow read.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writer = asyncio.create_task(self._run(), name="journal")

    @property
    def failure(self) -> LatticeError | None:
        """Why nothing is accepted any more, ever; None while all is well."""
        return self._failure

    @property
    def outage(self) -> StoreUnavailableError | None:
        """Why nothing becomes durable just now; None while all is well."""
        return self._outage

    def check(self) -> None:
        """Raises unless what is appended now can be expected to become durable."""
        error = self._failure or self._outage
        if error is not None:
            # Raised for everybody who asks: what it is told of each must not stay with it.
            raise error.with_traceback(None)

    def append(
        self, writes: Sequence[Write], then: Callable[[], None] | None = None
    ) -> asyncio.Future[None]:
        """Takes writes; returns at once. `then` is called on the loop once they are durable.

        The future ends with the commit, or with its error. While the database is away it ends with that
        news, and the writes become durable, and `then` is called, when it is back. Calls of `then` come in
        the order of the writes, before the future's.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever does not await the future learns of a failure from `failure`.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        failure = self._failure or (_CLOSED if self._writer.done() else None)
        if failure is not None:
            done.set_exception(failure)
            return done
        if self._outage is not None:
            done.set_exception(self._outage)
        self._pending.append(_Entry(writes, then, done))
        self._wake.set()
        return done

    async def barrier(self) -> None:
        """Waits until all that was appended before is durable, and the lease was seen to be held.

        Raises what the commit raised.
        """
        self.check()
        await self.append(())

    async def close(self) -> None:
        """Commits what is pending, then stops. A database that is away is asked once more."""
        self._closing = True
        self._wake.set()
        await self._writer
        self._thread.shutdown()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._group, self._pending = self._pending, []
            if self._group:
                try:
                    await self._commit([write for entry in self._group for write in entry.writes])
                    for entry in self._group:
                        if entry.then is not None:
                            entry.then()
                        if not entry.done.done():
                            entry.done.set_result(None)
                except Exception as error:
                    _log.exception("the journal stops")
                    self._fail(error)
                    return
            if self._closing and not self._pending:
                return

    async def _commit(self, writes: Sequence[Write]) -> None:
        """Commits a group, however often the database must be asked."""
        loop = asyncio.get_running_loop()
        self._number += bool(writes)
        pause = _FIRST_PAUSE
        while True:
            began = self._clock.now()
            timer = loop.call_later(_PATIENCE, self._suspend, _LATE)
            try:
                await loop.run_in_executor(
                    self._thread, self._store.commit, self._lease, writes, self._number
                )
                break
            except StoreUnavailableError as error:
                if isinstance(error, StoreRefusedError) or self._closing:
                    raise
                self._telemetry.commit_failed()
                self._suspend(error)
            finally:
                timer.cancel()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if self._outage is not None:
            _log.warning("the database is back")
            self._outage = None
            self._on_outage(False)
        if writes:
            self._telemetry.committed(len(writes), self._clock.now() - began)

    def _suspend(self, error: StoreUnavailableError) -> None:
        """Tells everybody who waits that the database is away."""
        if self._outage is None:
            _log.warning("nothing becomes durable until the database is back: %s", error)
            self._on_outage(True)
        self._outage = StoreUnavailableError(
            f"{error}; what was accepted goes on when the database is back, and what was asked meanwhile may "
            "still be done then: ask again with the same Idempotency-Key"
        )
        for entry in [*self._group, *self._pending]:
            if not entry.done.done():
                entry.done.set_exception(self._outage)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, LatticeError):
            error = StoreUnavailableError(f"a commit failed: {type(error).__name__}: {error}")
        self._failure = error
        for entry in [*self._group, *self._pending]:
            if not entry.done.done():
                entry.done.set_exception(error)
        self._pending.clear()
        self._on_failure(error)
