"""How many of a tenant's tasks run at a time: what is beyond its bound waits here, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lattice.ids import Tenant

#: What runs: an attempt by run, task and number, or a call by itself.
Holder = Hashable


@dataclass(slots=True)
class _Quota:
    allowed: int
    running: set[Holder] = field(default_factory=set)
    waiting: deque[Holder] = field(default_factory=deque)


class Quotas:
    """`allowed` bounds tenants by name; one without a bound never waits. Used from one event loop."""

    def __init__(self, allowed: Mapping[Tenant, int]) -> None:
        self._quotas: dict[Tenant | None, _Quota] = {
            tenant: _Quota(most) for tenant, most in allowed.items()
        }
        #: What begins those that wait.
        self._begin: dict[Holder, Callable[[], None]] = {}

    def bounds(self, tenant: Tenant | None) -> bool:
        """Whether the tenant has a bound."""
        return tenant in self._quotas

    def enter(self, tenant: Tenant | None, holder: Holder, begin: Callable[[], None]) -> None:
        """Calls `begin` now, or as soon as others of the tenant have left, unless `holder` leaves before."""
        quota = self._quotas.get(tenant)
        if quota is not None:
            if len(quota.running) >= quota.allowed:
                quota.waiting.append(holder)
                self._begin[holder] = begin
                return
            quota.running.add(holder)
        begin()

    def leave(self, tenant: Tenant | None, holder: Holder) -> None:
        """What ran has ended, or what waited is not wanted any more. Nothing for whom is not here."""
        quota = self._quotas.get(tenant)
        if quota is None:
            return
        # Who waits stays in the queue, where it is passed over.
        self._begin.pop(holder, None)
        quota.running.discard(holder)
        while quota.waiting and len(quota.running) < quota.allowed:
            following = quota.waiting.popleft()
            begin = self._begin.pop(following, None)
            if begin is not None:
                quota.running.add(following)
                begin()

    def waiting_for(self, tenant: Tenant | None, holder: Holder) -> str | None:
        """What `holder` waits for here, for people; None if it does not."""
        if holder not in self._begin:
            return None
        quota = self._quotas[tenant]
        return f"other tasks of {tenant!r}: {len(quota.running)} of max_concurrent_tasks, {quota.allowed}, run"

    @asynccontextmanager
    async def place(self, tenant: Tenant | None) -> AsyncIterator[None]:
        """Waits until one more of the tenant may run; it does so until the end of the block."""
        holder, begun = object(), asyncio.Event()
        self.enter(tenant, holder, begun.set)
        try:
            await begun.wait()
            yield
        finally:
            self.leave(tenant, holder)
