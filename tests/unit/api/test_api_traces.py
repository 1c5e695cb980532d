"""The span of a WebSocket: in whose trace it is, how long it lasts, and how it tells what closed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from lattice.api.server import create_app
from lattice.errors import UnavailableError
from lattice.settings import LatticeSettings
from tests.otlp import Receiver, receiving
from tests.unit.api.scripted import ScriptedRun, ScriptedService, message
from tests.unit.api.served import served, until

pytestmark = pytest.mark.anyio

PATH = "/get_workflow_res/w1/r1"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@asynccontextmanager
async def traced(
    service: ScriptedService, receiver: Receiver, **options: object
) -> AsyncIterator[str]:
    """The address of an app whose spans the receiver has once it has ended."""
    where = {"traces_exporter": "otlp_http", "traces_endpoint": receiver.http}
    app = create_app(
        orchestrator=service,
        settings=LatticeSettings(**where, **options),  # type: ignore[arg-type]
    )
    app.state.holder.streams = replace(app.state.holder.streams, patience=0.2)
    async with served(app) as address:
        yield f"ws://{address}"


@pytest.fixture
def run(service: ScriptedService) -> ScriptedRun:
    run = service.runs["r1"] = ScriptedRun()
    return run


def attributes(span: Span) -> dict[str, object]:
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
        for each in span.attributes
    }


async def test_it_lasts_until_the_last_message_in_the_trace_of_who_follows(
    service: ScriptedService, run: ScriptedRun
) -> None:
    with receiving() as receiver:
        async with (
            traced(service, receiver) as address,
            connect(address + PATH, additional_headers=CONTEXT) as socket,
        ):
            await run.say()
            assert await socket.recv() == message(1)
            await run.say(last=True)
            assert [text async for text in socket] == [message(2)]
        [span] = receiver.spans()
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.name == "WebSocket /get_workflow_res/{workflow_id}/{run_id}"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.response.status_code": 101,
        "http.route": "/get_workflow_res/{workflow_id}/{run_id}",
        "lattice.close_code": 1000,
        "lattice.run_id": "r1",
    }


async def test_without_a_trace_it_begins_one_as_often_as_is_set(
    service: ScriptedService, run: ScriptedRun
) -> None:
    await run.say(last=True)
    with receiving() as receiver:
        for ratio in (0.0, 1.0):
            async with (
                traced(service, receiver, traces_sample_ratio=ratio) as address,
                connect(address + PATH) as socket,
            ):
                assert [text async for text in socket] == [message(1)]
        [span] = receiver.spans()
    assert not span.parent_span_id


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (KeyError("a defect"), 1011, Status.STATUS_CODE_ERROR),
        (UnavailableError("gone"), 1013, Status.STATUS_CODE_ERROR),
        (None, 4400, Status.STATUS_CODE_UNSET),
    ],
)
async def test_what_closes_it_is_told(
    service: ScriptedService,
    run: ScriptedRun,
    error: Exception | None,
    code: int,
    status: Status.StatusCode.ValueType,
) -> None:
    """With the reason; what the client did wrong is no error of the service."""
    with receiving() as receiver:
        async with traced(service, receiver) as address:
            query = "?after=x" if error is None else ""
            async with connect(address + PATH + query) as socket, asyncio.timeout(10):
                if error is not None:
                    await run.until(lambda run: run.open_streams == 1)
                    await run.fail(error, reachable=False)
                await socket.wait_closed()
                reason = socket.close_reason
        [span] = receiver.spans()
    found = attributes(span)
    assert (found["lattice.close_code"], found["lattice.close_reason"]) == (code, reason)
    assert reason
    assert span.status.code == status


async def test_a_client_that_leaves_closes_it(service: ScriptedService, run: ScriptedRun) -> None:
    """With the code that it gave."""
    with receiving() as receiver:
        async with traced(service, receiver) as address:
            socket = await connect(address + PATH)
            await run.until(lambda run: run.open_streams == 1)
            await socket.close(4999, "enough")
            await until(lambda: not run.open_streams)
        [span] = receiver.spans()
    assert attributes(span)["lattice.close_code"] == 4999
    assert attributes(span)["lattice.close_reason"] == "enough"
    assert span.status.code == Status.STATUS_CODE_UNSET


async def test_a_handshake_that_is_refused_is_a_span_as_well(service: ScriptedService) -> None:
    """Of a page of another site, by an answer, and of the application, by closing what was not accepted."""
    with receiving() as receiver:
        async with traced(service, receiver) as address:
            with pytest.raises(InvalidStatus):
                await connect(address + PATH, origin="https://evil.example")  # type: ignore[arg-type]
            with pytest.raises(InvalidStatus):
                await connect(f"{address}/no/such/stream")
        spans = receiver.spans()
    assert [attributes(span)["http.response.status_code"] for span in spans] == [403, 403]
    assert not any("lattice.close_code" in attributes(span) for span in spans)
