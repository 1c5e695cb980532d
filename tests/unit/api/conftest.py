"""The app of these tests, around a scripted service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI

from lattice.api.following import StreamPolicy
from lattice.api.server import create_app
from tests.unit.api.scripted import ScriptedService


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def app(service: ScriptedService) -> FastAPI:
    app = create_app(orchestrator=service)
    app.state.holder.streams = StreamPolicy(
        patience=10, first_delay=0.01, max_delay=0.05, heartbeat=0.05, opening=0.05
    )
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
