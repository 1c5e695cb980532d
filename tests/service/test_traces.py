"""A run as a tracing system shows it: one trace from the request to the user's own spans, sent to a real receiver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from lattice import LatticeClient, task
from tests.otlp import Receiver, receiving
from tests.running import ORCHESTRATOR, Service, running_service, wait_for
from tests.service.rest import Rest, following, inputs, outputs

OWN_SPAN = """
from opentelemetry import trace

def own(params):
    with trace.get_tracer("user").start_as_current_span("own work"):
        return {"out": 1}
"""
FAILS = """
def fails(params):
    raise ValueError("no such thing")
"""
BATCH = """
from opentelemetry import trace

def batch(items):
    with trace.get_tracer("user").start_as_current_span("model"):
        return [{"out": len(items)} for _ in items]
"""
WAITS = """
import os, time

def waits(params):
    while os.path.exists(params["gate"]):
        time.sleep(0.05)
    return {"out": 1}
"""

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@task
def nothing() -> None:
    """Does nothing."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def service(receiver: Receiver) -> Iterator[Service]:
    with running_service(traces_exporter="otlp", traces_endpoint=receiver.grpc) as service:
        yield service


@pytest.fixture
def rest(service: Service) -> Iterator[Rest]:
    with Rest(service.url) as rest:
        yield rest


def start(rest: Rest, workflow_id: str, flags: str = "01", trace: str = TRACE) -> str:
    """A run that is requested in a trace."""
    answer = rest.http.post(
        "/run_workflow",
        json={"workflow_id": workflow_id},
        headers={"traceparent": f"00-{trace}-{PARENT}-{flags}"},
    )
    return str(answer.json()["run_id"])


def of_trace(receiver: Receiver, trace: str, *names: str) -> dict[str, Span]:
    """The spans of a trace by name, once those of these names are there."""

    def found() -> dict[str, Span] | None:
        spans = {s.name: s for s in receiver.spans() if s.trace_id.hex() == trace}
        return spans if set(names) <= set(spans) else None

    spans: dict[str, Span] = wait_for(f"spans {names}", found)
    return spans


def attributes(carrier: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in carrier.attributes}


def test_a_run_is_one_trace(receiver: Receiver, rest: Rest) -> None:
    """From the client's span through request, run and attempt to what user code makes; errors are on spans."""
    workflow_id = rest.workflow()
    rest.task(workflow_id, "own", OWN_SPAN, task_output=outputs("out"))
    rest.task(workflow_id, "fails", FAILS, retry={"max_attempts": 2, "backoff": 0})
    run_id = start(rest, workflow_id)
    rest.messages(workflow_id, run_id)
    spans = of_trace(
        receiver,
        TRACE,
        *(
            "POST /run_workflow",
            "run",
            "task own",
            "run own",
            "own work",
            "task fails",
            "run fails",
        ),
    )
    parents = (
        ("own work", "run own"),
        ("run own", "task own"),
        ("task own", "run"),
        ("task fails", "run"),
        ("run", "POST /run_workflow"),
    )
    for child, parent in parents:
        assert spans[child].parent_span_id == spans[parent].span_id, child
    assert spans["POST /run_workflow"].parent_span_id.hex() == PARENT
    assert spans["run"].start_time_unix_nano <= spans["own work"].start_time_unix_nano
    assert spans["own work"].end_time_unix_nano <= spans["run"].end_time_unix_nano
    assert attributes(spans["run"])["lattice.run_id"] == run_id
    assert spans["task own"].status.code == Status.STATUS_CODE_UNSET
    for name in ("task fails", "run fails"):
        assert spans[name].status.code == Status.STATUS_CODE_ERROR
        [event] = spans[name].events
        assert attributes(event)["exception.message"] == "no such thing"
        assert "in fails" in attributes(event)["exception.stacktrace"]
    # Each attempt has a span of its own.
    attempts = [s for s in receiver.spans() if s.name == "task fails"]
    assert len({s.span_id for s in attempts}) == 2
    assert rest.get(f"/runs/{run_id}")["run"]["trace_id"] == TRACE
    # A request that comes without a trace begins one.
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)
    begun = rest.get(f"/runs/{run_id}")["run"]["trace_id"]
    of_trace(receiver, begun, "POST /run_workflow", "run", "task own", "run own", "own work")


def test_following_a_run_is_a_span_in_the_trace_of_who_follows(
    receiver: Receiver, rest: Rest
) -> None:
    """And not in that of the run, which is told by its id. Nothing is left of what is not sampled."""
    workflow_id = rest.workflow()
    rest.task(workflow_id, "own", OWN_SPAN, task_output=outputs("out"))
    run_id = start(rest, workflow_id, trace="6" * 32)
    quiet, loud = "7" * 32, "8" * 32
    for trace, flags in ((quiet, "00"), (loud, "01")):
        address = f"{rest.url.replace('http', 'ws')}/get_workflow_res/{workflow_id}/{run_id}"
        context = {"traceparent": f"00-{trace}-{PARENT}-{flags}"}
        with following(address, additional_headers=context) as socket:
            assert len(list(socket)) == 3
    name = "WebSocket /get_workflow_res/{workflow_id}/{run_id}"
    span = of_trace(receiver, loud, name)[name]
    assert span.parent_span_id.hex() == PARENT
    assert span.kind == Span.SPAN_KIND_SERVER
    assert attributes(span)["lattice.run_id"] == run_id
    values = {each.key: each.value.int_value for each in span.attributes}
    assert (values["http.response.status_code"], values["lattice.close_code"]) == (101, 1000)
    assert not [s for s in receiver.spans() if s.trace_id.hex() == quiet]


def test_a_batch_has_links_to_its_calls(receiver: Receiver, rest: Rest) -> None:
    """It has what user code does for all, in the trace of its first call; each call has a span in its own trace."""
    workflow_id = rest.workflow()
    config = {"enabled": True, "batch_size": 2, "batch_timeout": 60}
    rest.task(workflow_id, "batch", BATCH, task_output=outputs("out"), batch_config=config)
    traces = ["1" * 32, "2" * 32]
    runs = [start(rest, workflow_id, trace=trace) for trace in traces]
    for run_id in runs:
        assert rest.messages(workflow_id, run_id)[-2]["data"]["result"] == {"out": 2}
    calls = [of_trace(receiver, trace, "run batch")["run batch"] for trace in traces]
    [batch] = wait_for(
        "the batch", lambda: [s for s in receiver.spans() if s.name == "batch batch"]
    )
    assert {link.trace_id.hex() for link in batch.links} == set(traces)
    for call in calls:
        assert [link.span_id for link in call.links] == [batch.span_id]
    assert batch.trace_id.hex() in traces
    model = of_trace(receiver, batch.trace_id.hex(), "model")["model"]
    assert model.parent_span_id == batch.span_id


def test_what_is_not_sampled_leaves_no_span(receiver: Receiver, rest: Rest) -> None:
    """The client has said so; a run after it is traced, so that its spans would have come."""
    workflow_id = rest.workflow()
    rest.task(workflow_id, "own", OWN_SPAN, task_output=outputs("out"))
    quiet, loud = "3" * 32, "4" * 32
    for trace, flags in ((quiet, "00"), (loud, "01")):
        rest.messages(workflow_id, start(rest, workflow_id, flags, trace))
    of_trace(receiver, loud, "run", "task own", "own work")
    assert not [s for s in receiver.spans() if s.trace_id.hex() == quiet]
    # Nor has user code left any in a trace of its own.
    roots = [s for s in receiver.spans() if s.name == "own work" and not s.parent_span_id]
    assert not roots


def test_a_trace_goes_on_after_a_crash(
    receiver: Receiver, service: Service, rest: Rest, tmp_path: Any
) -> None:
    """The next orchestrator writes the rest of the run into the trace of its request."""
    gate = tmp_path / "gate"
    gate.touch()
    workflow_id = rest.workflow()
    rest.task(workflow_id, "waits", WAITS, task_input=inputs(gate=str(gate)))
    trace = "5" * 32
    run_id = start(rest, workflow_id, trace=trace)
    service.kill(ORCHESTRATOR)
    service.wait_until_ready()
    gate.unlink()
    rest.messages(workflow_id, run_id)
    spans = of_trace(receiver, trace, "run", "task waits")
    assert spans["task waits"].parent_span_id == spans["run"].span_id


def test_the_sdk_passes_the_callers_trace_on(receiver: Receiver, service: Service) -> None:
    """What is asked inside a span of the user's program belongs to its trace."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("user")
    with (
        LatticeClient(service.url) as client,
        tracer.start_as_current_span("program") as span,
    ):
        workflow = client.create_workflow()
        workflow.add_task(nothing)
        workflow.run()
        context = trace.get_current_span().get_span_context()
        trace_id = f"{context.trace_id:032x}"
    name = "POST /submit_workflow"
    request = of_trace(receiver, trace_id, name)[name]
    assert request.parent_span_id.hex() == f"{span.get_span_context().span_id:016x}"
