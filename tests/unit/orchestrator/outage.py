"""A database that is away for a while, and how a test sees that the orchestrator has noticed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from lattice.errors import StoreUnavailableError
from lattice.ports.store import Write
from tests.unit.orchestrator.world import World


class Outage:
    """Lets every commit of a world fail, before it takes effect or after it, until `end`."""

    def __init__(
        self, world: World, monkeypatch: pytest.MonkeyPatch, *, done: bool = False
    ) -> None:
        self.tries = 0
        self._done = done
        self._over = False
        self._store_commit = world.store.commit
        monkeypatch.setattr(world.store, "commit", self._commit)

    def end(self) -> None:
        self._over = True

    def _commit(self, lease: int, writes: Sequence[Write], number: int) -> None:
        self.tries += 1
        if self._over or self._done:
            self._store_commit(lease, writes, number)
        if not self._over:
            raise StoreUnavailableError("the server closed the connection")


async def known(world: World) -> None:
    """Waits until the orchestrator has noticed."""
    await until(lambda: world.orchestrator._parts.journal.outage is not None)


async def over(world: World) -> None:
    """Waits until the orchestrator has noticed that the database is back."""
    await until(lambda: world.orchestrator._parts.journal.outage is None)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited for 30 s")
