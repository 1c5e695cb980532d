"""An app behind a real HTTP server in the test's own event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp


async def until(condition: Callable[[], bool]) -> None:
    """Returns soon after `condition` holds; for what tells nobody. Raises TimeoutError after 5 seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError


@asynccontextmanager
async def served(
    app: ASGIApp, *, send_buffer: int | None = None, **options: Any
) -> AsyncIterator[str]:
    """Yields `127.0.0.1:port` while the app is served. Nothing of it is left running afterwards.

    `send_buffer`: bytes that the kernel takes for a connection, about. `options`: uvicorn's.
    """
    before = asyncio.all_tasks()
    with socket.socket() as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(("127.0.0.1", 0))
        options = {"log_level": "error", "timeout_graceful_shutdown": 5} | options
        server = uvicorn.Server(uvicorn.Config(app, **options))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started or serving.done())
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
    leaked = asyncio.all_tasks() - before
    assert not leaked, leaked
