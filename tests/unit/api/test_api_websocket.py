"""The WebSocket of a run: every message once, in order, whatever happens on the way."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lattice.api.server import create_app
from lattice.errors import InvalidTransitionError, UnavailableError
from lattice.settings import LatticeSettings
from tests.unit.api.scripted import ScriptedRun, ScriptedService, message
from tests.unit.api.served import served, until

pytestmark = pytest.mark.anyio


async def heard(url: str, **options: object) -> tuple[list[str], int, str]:
    """All messages, the close code and the reason."""
    messages: list[str] = []
    async with asyncio.timeout(10), connect(url, **options) as socket:  # type: ignore[arg-type]
        try:
            while True:
                messages.append(str(await socket.recv()))
        except ConnectionClosed:
            return messages, socket.close_code or 0, socket.close_reason or ""


@pytest.fixture
def run(service: ScriptedService) -> ScriptedRun:
    run = service.runs["r1"] = ScriptedRun()
    return run


async def test_each_message_is_a_frame_and_1000_comes_after_the_last(
    app: FastAPI, run: ScriptedRun
) -> None:
    await run.say(3, last=True)
    async with served(app) as address:
        assert await heard(f"ws://{address}/get_workflow_res/w1/r1") == (
            [message(1), message(2), message(3)],
            1000,
            "",
        )


async def test_a_message_is_sent_when_it_happens(app: FastAPI, run: ScriptedRun) -> None:
    async with served(app) as address, connect(f"ws://{address}/get_workflow_res/w1/r1") as socket:
        for seq in (1, 2):
            await run.say()
            async with asyncio.timeout(5):
                assert await socket.recv() == message(seq)


async def test_after_resumes_behind_that_message(app: FastAPI, run: ScriptedRun) -> None:
    await run.say(5, last=True)
    async with served(app) as address:
        messages, code, _ = await heard(f"ws://{address}/get_workflow_res/w1/r1?after=3")
        assert (messages, code) == ([message(4), message(5)], 1000)
        assert await heard(f"ws://{address}/get_workflow_res/w1/r1?after=5") == ([], 1000, "")


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "", "9" * 20, "%C2%B2"])
async def test_a_bad_after_closes_4400_with_the_reason(
    app: FastAPI, run: ScriptedRun, after: str
) -> None:
    async with served(app) as address:
        messages, code, reason = await heard(f"ws://{address}/get_workflow_res/w1/r1?after={after}")
    assert (messages, code) == ([], 4400)
    assert reason.startswith("after: found ")


@pytest.mark.parametrize("run_id", ["r2", "%00", "a%20b", "%F0%9F%8E%88" * 40])
async def test_an_unknown_run_closes_4404_with_the_reason(app: FastAPI, run_id: str) -> None:
    async with served(app) as address:
        messages, code, reason = await heard(f"ws://{address}/get_workflow_res/w1/{run_id}")
    assert (messages, code) == ([], 4404)
    assert reason.startswith("Run ")


async def test_a_client_that_is_silent_for_too_long_has_left(
    app: FastAPI,
    run: ScriptedRun,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The server closes its connection, but cannot before all is sent: what comes meanwhile is no defect."""
    quick: dict[str, Any] = {"ws_ping_interval": 0.2, "ws_ping_timeout": 0.2}
    async with served(app, send_buffer=4096, **quick) as address:
        host, _, port = address.partition(":")
        with socket.socket() as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            silent.setblocking(False)
            await asyncio.get_running_loop().sock_connect(silent, (host, int(port)))
            silent.send(
                f"GET /get_workflow_res/w1/r1 HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            await run.until(lambda run: run.open_streams == 1)
            # More than the kernel takes, and less than what has the server wait.
            await run.say(1_100)
            async with asyncio.timeout(30):
                while run.open_streams:
                    await run.say()
                    await asyncio.sleep(0.05)
    assert not caplog.records
    assert "Traceback" not in capsys.readouterr().err


async def test_an_interruption_of_the_orchestrator_repeats_and_loses_nothing(
    app: FastAPI, run: ScriptedRun
) -> None:
    messages: list[str] = []
    async with (
        served(app) as address,
        connect(f"ws://{address}/get_workflow_res/w1/r1") as socket,
        asyncio.timeout(10),
    ):
        for round in range(4):
            await run.until(lambda run: run.open_streams == 1)
            await run.say(2)
            if round % 2:
                # Broken between two messages that arrived, else before they were handed on.
                messages += [str(await socket.recv()), str(await socket.recv())]
            opened = len(run.opened_after)
            await run.fail(UnavailableError("restarting"), reachable=False)
            await run.say()
            await run.until(lambda run, opened=opened: len(run.opened_after) > opened + 2)  # type: ignore[misc]
            run.reachable = True
            while len(messages) < len(run.log):
                messages.append(str(await socket.recv()))
        await run.say(last=True)
        messages += [str(text) async for text in socket]
        assert socket.close_code == 1000
    assert messages == [message(seq) for seq in range(1, 14)]
    assert run.open_streams == 0


async def test_an_orchestrator_that_stays_away_closes_1013(app: FastAPI, run: ScriptedRun) -> None:
    app.state.holder.streams = replace(app.state.holder.streams, patience=0.2)
    await run.say(2)
    async with served(app) as address:
        listening = asyncio.create_task(heard(f"ws://{address}/get_workflow_res/w1/r1"))
        await run.until(lambda run: run.open_streams == 1)
        await run.fail(UnavailableError("gone"), reachable=False)
        assert await listening == (
            [message(1), message(2)],
            1013,
            "the orchestrator is away",
        )


async def test_a_defect_closes_1011_and_does_not_tell(
    app: FastAPI, run: ScriptedRun, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(app) as address:
        for error in (
            KeyError("secret"),
            InvalidTransitionError("r1", "t", "done", "started", []),
        ):
            listening = asyncio.create_task(heard(f"ws://{address}/get_workflow_res/w1/r1"))
            await run.until(lambda run: run.open_streams == 1)
            await run.fail(error)
            messages, code, reason = await listening
            assert (messages, code) == ([], 1011)
            assert "secret" not in reason
    assert "secret" in caplog.text


async def test_a_client_that_leaves_ends_its_stream_at_once(app: FastAPI, run: ScriptedRun) -> None:
    async with served(app) as address:
        before = asyncio.all_tasks()
        sockets = [await connect(f"ws://{address}/get_workflow_res/w1/r1") for _ in range(10)]
        await run.until(lambda run: run.open_streams == 10)
        # Some take leave, some are cut off.
        for place, socket in enumerate(sockets):
            if place % 2:
                socket.transport.abort()
            await socket.close()
        await until(lambda: not run.open_streams and not asyncio.all_tasks() - before)


async def test_what_a_client_says_is_ignored(app: FastAPI, run: ScriptedRun) -> None:
    async with served(app) as address, connect(f"ws://{address}/get_workflow_res/w1/r1") as socket:
        await socket.send("hello")
        await socket.send(b"\0")
        await run.say()
        assert await socket.recv() == message(1)


async def test_without_an_orchestrator_the_handshake_is_refused(app: FastAPI) -> None:
    app.state.holder.orchestrator = None
    async with served(app) as address:
        with pytest.raises(InvalidStatus):
            await heard(f"ws://{address}/get_workflow_res/w1/r1")


async def test_another_sites_page_is_refused_in_the_handshake(
    app: FastAPI, run: ScriptedRun
) -> None:
    async with served(app) as address:
        with pytest.raises(InvalidStatus) as refused:
            await heard(f"ws://{address}/get_workflow_res/w1/r1", origin="https://evil.example")
    assert refused.value.response.status_code == 403
    assert run.opened_after == []


async def test_streams_beyond_the_bound_are_refused_and_those_that_close_make_room(
    service: ScriptedService, run: ScriptedRun
) -> None:
    """WebSockets and server-sent events together: exactly as many as the setting says."""
    settings = LatticeSettings(max_open_streams=2)
    async with served(create_app(orchestrator=service, settings=settings)) as address:
        url, events = f"ws://{address}/get_workflow_res/w1/r1", f"http://{address}/runs/r1/events"
        async with connect(url) as first, httpx.AsyncClient() as client:
            await run.say()
            async with client.stream("GET", events) as second:
                assert second.status_code == 200
                messages, code, reason = await heard(url)
                assert (messages, code) == ([], 1013)
                assert reason.startswith("max_open_streams: 3 streams")
                refused = await client.get(events)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
                assert "max_open_streams" in refused.json()["detail"]
                assert await first.recv() == message(1)
            await until(lambda: run.open_streams == 1)
            async with connect(url) as third:
                assert await third.recv() == message(1)
        await until(lambda: run.open_streams == 0)
        await run.say(1, last=True)
        for _ in range(3):
            assert (await heard(url))[1] == 1000
