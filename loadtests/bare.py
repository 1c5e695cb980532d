"""A bare Serve application beside the service, on the same engine and behind the same proxy: its floors.

Two deployments as the service has them, an ingress of FastAPI and one replica behind it, with the same options
and nothing of Lattice in them.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI, WebSocket
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

#: The application in a configuration, at `/bare`.
BARE = {"name": "bare", "route_prefix": "/bare", "import_path": "loadtests.bare:build"}

#: What the service's tasks ask for in these benchmarks.
_CPUS = 1


def work(x: int) -> int:
    """Hands on its input."""
    return x


def sleeper(seconds: float) -> float:
    """When it ended, in seconds since the epoch."""
    time.sleep(seconds)
    return time.time()


class Log:
    """Rows in SQLite, each durable before anybody hears of it, as those of the service are."""

    def __init__(self, folder: Path) -> None:
        path = folder / "log"
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute("CREATE TABLE ends (number INTEGER PRIMARY KEY, at REAL)")

    def add(self, at: float) -> None:
        """Commits a row."""
        self._database.execute("INSERT INTO ends (at) VALUES (?)", (at,))


@serve.deployment(
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=1,
    health_check_timeout_s=10,
    max_ongoing_requests=10_000,
)
class Behind:
    """A replica that answers, and runs raw Ray tasks as the orchestrator does."""

    def __init__(self) -> None:
        self._work = ray.remote(work).options(num_cpus=_CPUS, max_retries=0)
        self._sleeper = ray.remote(sleeper).options(num_cpus=0.1, max_retries=0)

    async def answer(self) -> str:
        """Something."""
        return "there"

    async def chain(self, number: int) -> float:
        """Seconds for tasks of which each is awaited before the next begins."""
        begun = time.perf_counter()
        x = 0
        for _ in range(number):
            x = await self._work.remote(x)
        return time.perf_counter() - begun

    async def fan_out(self, number: int) -> float:
        """Seconds for tasks that are all submitted at once."""
        begun = time.perf_counter()
        await asyncio.gather(*(self._work.remote(x) for x in range(number)))
        return time.perf_counter() - begun

    async def ends(self, number: int, seconds: float) -> AsyncIterator[float]:
        """When each of so many tasks ended, one after the other, as soon as that is durable."""
        with tempfile.TemporaryDirectory() as folder:
            log = Log(Path(folder))
            for _ in range(number):
                at = await self._sleeper.remote(seconds)
                await asyncio.to_thread(log.add, at)
                yield at


def _app(behind: DeploymentHandle[Any]) -> FastAPI:
    app = FastAPI()

    @app.get("/plain")
    async def plain() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/behind")
    async def through() -> str:
        return str(await behind.answer.remote())

    @app.get("/chain/{number}")
    async def chain(number: int) -> float:
        return float(await behind.chain.remote(number))

    @app.get("/fan_out/{number}")
    async def fan_out(number: int) -> float:
        return float(await behind.fan_out.remote(number))

    @app.websocket("/ends/{number}/{seconds}")
    async def ends(websocket: WebSocket, number: int, seconds: float) -> None:
        await websocket.accept()
        stream: Any = behind.options(stream=True).ends.remote(number, seconds)
        async for at in stream:
            await websocket.send_text(str(at))
        await websocket.close()

    return app


class _Front:
    """Builds the FastAPI application on the replica."""

    def __init__(self, behind: DeploymentHandle[Any]) -> None:
        self._behind = behind

    def __serve_build_asgi_app__(self) -> FastAPI:
        return _app(self._behind)


Front = serve.deployment(
    name="Front",
    max_ongoing_requests=10_000,
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=1,
)(serve.ingress()(_Front))


def build(_: dict[str, str]) -> Application:
    """The ingress in front of one replica."""
    return Front.bind(Behind.bind())  # type: ignore[attr-defined]  # Serve types it as the class
