"""A run's messages as server-sent events: the same promises as on the WebSocket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from fastapi import FastAPI

from lattice.errors import UnavailableError
from tests.unit.api.scripted import ScriptedRun, ScriptedService, message
from tests.unit.api.served import served, until

pytestmark = pytest.mark.anyio

URL = "/runs/r1/events"


@pytest.fixture
def run(service: ScriptedService) -> ScriptedRun:
    run = service.runs["r1"] = ScriptedRun()
    return run


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[httpx.Response]:
    """The response to a real client; how it ends is up to the test."""
    async with (
        served(app) as address,
        httpx.AsyncClient(base_url=f"http://{address}", timeout=10) as client,
        client.stream("GET", URL) as answer,
    ):
        yield answer


async def fields(answer: httpx.Response) -> AsyncIterator[str]:
    """The lines of the events, without comments."""
    async for line in answer.aiter_lines():
        if line and not line.startswith(":"):
            yield line


def event(seq: int) -> str:
    return f"id: {seq}\ndata: {message(seq)}\n\n"


async def test_events_are_the_messages_and_ids_their_numbers(
    client: httpx.AsyncClient, run: ScriptedRun
) -> None:
    await run.say(3, last=True)
    answer = await client.get(URL)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-length" not in answer.headers
    assert answer.text == event(1) + event(2) + event(3)


async def test_after_and_last_event_id_resume_and_the_header_wins(
    client: httpx.AsyncClient, run: ScriptedRun
) -> None:
    await run.say(3, last=True)
    assert (await client.get(URL, params={"after": 2})).text == event(3)
    answer = await client.get(URL, params={"after": 0}, headers={"Last-Event-ID": "1"})
    assert answer.text == event(2) + event(3)


async def test_nothing_more_to_say_is_204_so_that_browsers_stop_asking(
    client: httpx.AsyncClient, run: ScriptedRun
) -> None:
    await run.say(3, last=True)
    answer = await client.get(URL, headers={"Last-Event-ID": "3"})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"params": {"after": "x"}}, "after"),
        ({"headers": {"Last-Event-ID": "-1"}}, "Last-Event-ID"),
    ],
)
async def test_a_bad_number_is_400(
    client: httpx.AsyncClient, run: ScriptedRun, sent: dict[str, dict[str, str]], field: str
) -> None:
    answer = await client.get(URL, params=sent.get("params"), headers=sent.get("headers"))
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(f"{field}: found ")


async def test_an_unknown_run_is_404(client: httpx.AsyncClient) -> None:
    answer = await client.get("/runs/nope/events")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Run nope not found"})


async def test_an_orchestrator_that_is_away_from_the_start_is_503(
    app: FastAPI, client: httpx.AsyncClient, run: ScriptedRun
) -> None:
    app.state.holder.streams = replace(app.state.holder.streams, patience=0.005)
    run.reachable = False
    answer = await client.get(URL)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


async def test_silence_is_filled_with_comments(app: FastAPI, run: ScriptedRun) -> None:
    async with listening(app) as answer:
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(4)] == [": waiting", "", ": waiting", ""]
        await run.say(last=True)
        assert "id: 1" in [line async for line in lines]


async def test_an_interruption_repeats_and_loses_nothing(app: FastAPI, run: ScriptedRun) -> None:
    async with listening(app) as answer:
        lines = fields(answer)
        await run.say()
        assert await anext(lines) == "id: 1"
        await run.fail(UnavailableError("restarting"), reachable=False)
        await run.say()
        await run.until(lambda run: run.opened_after[-2:] == [1, 1])
        run.reachable = True
        await run.say(last=True)
        assert [line async for line in lines if line.startswith("id")] == ["id: 2", "id: 3"]


async def test_a_failure_in_the_middle_is_an_error_event(app: FastAPI, run: ScriptedRun) -> None:
    app.state.holder.streams = replace(app.state.holder.streams, patience=0.2)
    async with listening(app) as answer:
        lines = fields(answer)
        await run.say()
        assert await anext(lines) == "id: 1"
        await run.fail(UnavailableError("gone"), reachable=False)
        rest = [line async for line in lines]
    at = rest.index("event: error")
    assert rest[at + 1] == 'data: {"detail": "the orchestrator is away"}'


async def test_a_defect_in_the_middle_is_not_told(
    app: FastAPI, run: ScriptedRun, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(app) as answer:
        lines = fields(answer)
        await run.say()
        assert await anext(lines) == "id: 1"
        await run.fail(KeyError("secret"))
        rest = [line async for line in lines]
    assert "event: error" in rest
    assert not any("secret" in line for line in rest)
    assert "secret" in caplog.text


async def test_a_client_that_leaves_ends_its_stream_at_once(app: FastAPI, run: ScriptedRun) -> None:
    async with served(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        async with client.stream("GET", URL) as answer:
            await anext(answer.aiter_lines())
            assert run.open_streams == 1
        await until(lambda: run.open_streams == 0)


async def test_streams_end_when_the_server_stops(app: FastAPI, run: ScriptedRun) -> None:
    async with listening(app) as answer:
        app.state.holder.stopping.set()
        async for _ in answer.aiter_lines():
            pass
        assert run.open_streams == 0


async def test_no_stream_begins_while_the_server_stops(
    app: FastAPI, client: httpx.AsyncClient, run: ScriptedRun
) -> None:
    app.state.holder.stopping.set()
    answer = await client.get(URL)
    assert (answer.status_code, answer.json()) == (503, {"detail": "the service is stopping"})
