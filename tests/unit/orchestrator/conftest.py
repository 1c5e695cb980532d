"""The world that the tests of this folder act in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from tests.unit.orchestrator.world import FakeStorage, MakeWorld, World, make


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


@pytest.fixture
async def make_world(anyio_backend: str) -> AsyncIterator[MakeWorld]:
    """Makes a world whose orchestrator has other limits and defaults."""
    made: list[World] = []

    async def new(**options: Any) -> World:
        store, clock, ids = MemoryStore(), FakeClock(), CountedIds()
        dispatcher = HeldDispatcher(clock)
        orchestrator = make(store, clock, dispatcher, ids, **options)
        made.append(World(store, clock, dispatcher, orchestrator, ids, options=options))
        await orchestrator.start_monitor()
        return made[-1]

    yield new
    for world in made:
        await world.orchestrator.close()
