"""Signals: what has to be cleaned up is, and then the process ends as it would have."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from lattice.api.signals import SignalHandlers

#: Serves an app that owns a scripted orchestrator, with a run that says one thing and goes on.
SERVER = """
import sys
import uvicorn
from lattice.api import server
from tests.unit.api.scripted import OwnedScriptedService, ScriptedRun, message

service = OwnedScriptedService()
service.runs["r1"] = ScriptedRun([message(1)])
server._build = lambda *_: service


class Told(list):
    def append(self, event):
        print(event, flush=True)


service.life = Told()
form, port = sys.argv[1], int(sys.argv[2])
options = {"port": port, "log_level": "error"}
if form == "factory":
    uvicorn.run("lattice.api.server:create_app", factory=True, **options)
elif form == "object":
    uvicorn.run(server.create_app(), **options)
else:
    import time
    server.create_app()
    print("made", flush=True)
    while True:
        time.sleep(0.05)
"""


@pytest.fixture
def free_port() -> Iterator[int]:
    """One that is kept until somebody listens there, which this does not prevent."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@asynccontextmanager
async def process(form: str, port: int) -> AsyncIterator[Process]:
    """The server above, in a process of its own."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, form, str(port), stdout=PIPE, cwd=Path(__file__).parents[3]
    )
    try:
        async with asyncio.timeout(120):
            yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def lines(started: Process, count: int) -> list[str]:
    """The next lines that the process writes."""
    assert started.stdout is not None
    return [(await started.stdout.readline()).decode().strip() for _ in range(count)]


async def stopped_by(number: signal.Signals, started: Process) -> tuple[list[str], int | None]:
    """What the process still writes, and its exit status."""
    started.send_signal(number)
    rest, _ = await started.communicate()
    return rest.decode().split(), started.returncode


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("form", ["factory", "object"])
async def test_a_server_with_an_open_stream_stops_and_cleans_up_once(
    free_port: int, form: str, number: signal.Signals
) -> None:
    async with process(form, free_port) as started, httpx.AsyncClient(timeout=60) as client:
        assert await lines(started, 2) == ["initialize", "start_monitor"]
        url = f"http://localhost:{free_port}"
        # The app starts just before the server listens.
        for _ in range(1000):
            if await _listens(client, url):
                break
            await asyncio.sleep(0.01)
        async with client.stream("GET", f"{url}/runs/r1/events") as answer:
            assert await anext(answer.aiter_lines()) == "id: 1"
            told, status = await stopped_by(number, started)
    assert told == ["close", "cleanup"]
    # uvicorn takes the KeyboardInterrupt of SIGINT as a regular end.
    assert status == (0 if number == signal.SIGINT else -number)


async def _listens(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(f"{url}/healthz")).is_success
    except httpx.TransportError:
        return False


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_an_app_that_nobody_serves_is_cleaned_up_by_the_signal(
    free_port: int, number: signal.Signals
) -> None:
    async with process("made", free_port) as started:
        assert await lines(started, 2) == ["initialize", "made"]
        assert await stopped_by(number, started) == (["cleanup"], -number)


# -- the chain, in this process ------------------------------------------------------------------


@pytest.fixture
def calls() -> Iterator[list[str]]:
    calls: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append("server"))
    before_int = signal.getsignal(signal.SIGINT)
    yield calls
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, before_int)


def test_handlers_do_their_work_and_hand_on(calls: list[str]) -> None:
    handlers = SignalHandlers(lambda: calls.append("ours"))
    assert handlers.install()
    assert not handlers.install()
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["ours", "server"]
    handlers.remove()
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["ours", "server", "server"]


def test_a_server_that_comes_in_front_is_come_before_again(calls: list[str]) -> None:
    handlers = SignalHandlers(lambda: calls.append("ours"))
    handlers.install()
    found = signal.signal(signal.SIGTERM, lambda number, frame: calls.append("front"))
    assert handlers.install()
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["ours", "front"]
    handlers.remove()
    signal.signal(signal.SIGTERM, found)
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["ours", "front", "ours", "server"]


def test_an_ignored_signal_stays_ignored(calls: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    handlers = SignalHandlers(lambda: calls.append("ours"))
    handlers.install()
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["ours"]


def test_outside_the_main_thread_nothing_is_installed(calls: list[str]) -> None:
    results: list[bool] = []
    handlers = SignalHandlers(lambda: None)
    thread = threading.Thread(target=lambda: results.append(handlers.install()))
    thread.start()
    thread.join()
    assert results == [False]
