"""An app behind a real HTTP server in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI


async def until(condition: Callable[[], bool]) -> None:
    """Returns soon after `condition` holds; for what tells nobody. Raises TimeoutError after 5 seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Yields `127.0.0.1:port` while the app is served. Nothing of it is left running afterwards."""
    before = asyncio.all_tasks()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started or serving.done())
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
    leaked = asyncio.all_tasks() - before
    assert not leaked, leaked
