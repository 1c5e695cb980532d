"""The world that the tests of this folder act in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from tests.unit.orchestrator.world import FakeStorage, World, make


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    store, clock, ids = MemoryStore(), FakeClock(), CountedIds()
    dispatcher = HeldDispatcher(clock)
    storage = FakeStorage()
    orchestrator = make(store, clock, dispatcher, ids, storage)
    world = World(store, clock, dispatcher, orchestrator, ids, storage)
    await world.orchestrator.start_monitor()
    yield world
    await world.orchestrator.close()
