"""How many of a tenant's tasks run at a time: what is beyond its bound waits here, and its runs take turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import asynccontextmanager

from lattice.ids import RunId, Tenant
from lattice.workflow.fair_queue import FairQueue

#: What runs: an attempt by run, task and number, or a call by itself.
Holder = Hashable

#: Whose turns are counted together: a run, or, for None, all calls of the tenant.
Group = RunId | None


class Quotas:
    """`allowed` bounds tenants by name; one without a bound never waits. Used from one event loop."""

    def __init__(self, allowed: Mapping[Tenant, int]) -> None:
        self._allowed: dict[Tenant | None, int] = dict(allowed.items())
        self._queue: FairQueue[Tenant | None, Holder] = FairQueue(self._allowed.__getitem__)
        #: Those that wait: of whom, and what begins them.
        self._waiting: dict[Holder, tuple[Tenant | None, Callable[[], None]]] = {}
        self._running: dict[Tenant | None, set[Holder]] = {tenant: set() for tenant in allowed}

    def bounds(self, tenant: Tenant | None) -> bool:
        """Whether the tenant has a bound."""
        return tenant in self._allowed

    def enter(
        self, tenant: Tenant | None, group: Group, holder: Holder, begin: Callable[[], None]
    ) -> None:
        """Calls `begin` now, or as soon as it is the turn of `group` and others of the tenant have left.

        Never, if `holder` leaves before.
        """
        if tenant not in self._allowed:
            begin()
            return
        self._waiting[holder] = tenant, begin
        self._queue.put(tenant, group, holder)
        self._begin_next()

    def leave(self, tenant: Tenant | None, group: Group, holder: Holder) -> None:
        """What ran has ended, or what waited is not wanted any more. Nothing for whom is not here."""
        if self._waiting.pop(holder, None) is not None:
            self._queue.discard(tenant, group, holder)
        elif holder in self._running.get(tenant, ()):
            self._running[tenant].remove(holder)
            self._queue.done(tenant)
            self._begin_next()

    def _begin_next(self) -> None:
        while (holder := self._queue.take()) is not None:
            tenant, begin = self._waiting.pop(holder)
            self._running[tenant].add(holder)
            begin()

    def waiting_for(self, tenant: Tenant | None, holder: Holder) -> str | None:
        """What `holder` waits for here, for people; None if it does not."""
        if holder not in self._waiting:
            return None
        running, most = len(self._running[tenant]), self._allowed[tenant]
        return f"other tasks of {tenant!r}: {running} of max_concurrent_tasks, {most}, run"

    @asynccontextmanager
    async def place(self, tenant: Tenant | None) -> AsyncIterator[None]:
        """Waits until one more of the tenant may run; it does so until the end of the block."""
        holder, begun = object(), asyncio.Event()
        self.enter(tenant, None, holder, begun.set)
        try:
            await begun.wait()
            yield
        finally:
            self.leave(tenant, None, holder)
