"""Runs: listing, watching, cancelling, retrying and deleting them, and what their tasks returned."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from lattice.api.dependencies import AnyId, AppHolder, Idempotency, Service
from lattice.api.errors import refusals
from lattice.api.following import follow_run, parse_seq
from lattice.api.models.schemas import (
    CancelRunResponse,
    DescribeRunResponse,
    ListRunsResponse,
    RetryRunResponse,
    RunState,
    StatusResponse,
    TaskLogsResponse,
    TaskResultResponse,
)
from lattice.api.requests import JSONRoute
from lattice.api.responses import SafeJSONResponse
from lattice.api.streams import EventStreamResponse
from lattice.ids import RunId, TaskId, WorkflowId
from lattice.ports.service import VALUE_PART_BYTES

router = APIRouter(tags=["runs"], route_class=JSONRoute)


@router.get("/runs", response_model=ListRunsResponse, responses=refusals(404))
async def list_runs(
    service: Service,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most runs to list.")] = 100,
    workflow_id: Annotated[AnyId | None, Query(description="Only runs of this workflow.")] = None,
    status: Annotated[RunState | None, Query(description="Only runs with this status.")] = None,
    before: Annotated[
        AnyId | None, Query(description="Only runs older than this run: the next page.")
    ] = None,
) -> Response:
    """Runs, newest first."""
    runs = await service.list_runs(
        limit,
        None if workflow_id is None else WorkflowId(workflow_id),
        status,
        None if before is None else RunId(before),
    )
    return SafeJSONResponse({"status": "success", "runs": runs})


@router.get("/runs/{run_id}", response_model=DescribeRunResponse, responses=refusals(404))
async def describe_run(run_id: AnyId, service: Service) -> Response:
    """A run and the state of each of its tasks."""
    run = await service.describe_run(RunId(run_id))
    return SafeJSONResponse({"status": "success", "run": run})


@router.get(
    "/runs/{run_id}/events",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events: `id` is the message's number, `data` the message as on "
            "the WebSocket. Comments keep the connection alive. An event named `error` ends a "
            "stream that may be resumed.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "The run has ended and has no messages after the given number."},
        **refusals(400, 404),
    },
)
async def run_events(
    run_id: AnyId,
    service: Service,
    holder: AppHolder,
    after: Annotated[
        str, Query(description="Number of the last message seen; 0 for all.", examples=["0"])
    ] = "0",
    last_event_id: Annotated[
        str | None,
        Header(
            description="The same, as a browser sends it when it reconnects; wins over `after`."
        ),
    ] = None,
    logs: Annotated[
        bool,
        Query(
            description="Whether messages of type `task_log` come too, which have no number: what tasks have "
            "printed so far, then what they print, every half second. See `/runs/{run_id}/tasks/{task_id}/logs`."
        ),
    ] = False,
) -> EventStreamResponse:
    """The messages of a run, each as it comes, until the last."""
    if last_event_id is None:
        seq = parse_seq(after, "after")
    else:
        seq = parse_seq(last_event_id, "Last-Event-ID")
    return EventStreamResponse(
        lambda: follow_run(service, RunId(run_id), None, seq, holder.streams, logs=logs),
        holder.streams,
        holder.stopping,
        holder.open_streams,
    )


@router.post("/runs/{run_id}/cancel", responses=refusals(404))
async def cancel_run(run_id: AnyId, service: Service) -> CancelRunResponse:
    """Cancels a run: its running tasks are ended. One that has ended stays as it is."""
    return CancelRunResponse.model_validate({"run_status": await service.cancel_run(RunId(run_id))})


@router.post("/runs/{run_id}/retry", responses=refusals(400, 404, 409))
async def retry_run(run_id: AnyId, service: Service, once: Idempotency) -> RetryRunResponse:
    """Starts a new run that does what this one, failed or cancelled, has left undone.

    It works on the same snapshot of the workflow, whatever became of that since, with a deadline as long.
    Its messages begin with a `finish_task` for each task that had finished, with the run in `taken_from`;
    none of those runs again. The request has no body.
    """
    return RetryRunResponse(run_id=await service.retry_run(RunId(run_id), once))


@router.delete("/runs/{run_id}", responses=refusals(400, 404))
async def delete_run(run_id: AnyId, service: Service) -> StatusResponse:
    """Deletes a run that has ended, with its messages and values; runs that took results of it over keep
    them."""
    await service.delete_run(RunId(run_id))
    return StatusResponse()


@router.get(
    "/runs/{run_id}/tasks/{task_id}/result",
    response_model=TaskResultResponse,
    responses=refusals(404),
)
async def task_result(run_id: AnyId, task_id: AnyId, service: Service) -> Response:
    """What a task returned: JSON where it is JSON and small, else descriptions with a `url`."""
    result = await service.task_result(RunId(run_id), TaskId(task_id))
    return SafeJSONResponse({"status": "success", "result": result})


@router.get(
    "/runs/{run_id}/tasks/{task_id}/logs",
    response_model=TaskLogsResponse,
    responses=refusals(400, 404),
)
async def task_logs(
    run_id: AnyId,
    task_id: AnyId,
    service: Service,
    attempt: Annotated[
        int | None, Query(ge=1, le=1_000_000, description="Only what this attempt has printed.")
    ] = None,
    after: Annotated[
        str | None, Query(description="`next` of the page before, for the next page.")
    ] = None,
) -> Response:
    """What the attempts of a task have printed and logged, while it runs and afterwards.

    Of each attempt the beginning and the end are kept, up to the setting `max_log_bytes`; `cut` says how many
    bytes are missing before an entry. What a batch prints is that of each task in it.
    """
    page = await service.task_logs(RunId(run_id), TaskId(task_id), attempt, after)
    return SafeJSONResponse({"status": "success", **page})


@router.get(
    "/runs/{run_id}/tasks/{task_id}/result/{key:path}",
    response_class=Response,
    responses={
        200: {
            "description": "The value of one output, whole.",
            "content": {
                "application/json": {"schema": {}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **refusals(400, 404),
    },
)
async def output_value(
    run_id: AnyId,
    task_id: AnyId,
    key: str,
    service: Service,
    format: Annotated[
        Literal["json", "pickle"],
        Query(
            description="`pickle` gives the exact object as bytes; unpickle only what you trust."
        ),
    ] = "json",
) -> Response:
    """One output of a task, whole and however large, as JSON or as a pickle."""
    where = RunId(run_id), TaskId(task_id), key
    # A browser must show neither as a page.
    headers = {"X-Content-Type-Options": "nosniff"}
    if format == "pickle":
        first = await service.value_pickle(*where)

        async def parts() -> AsyncIterator[bytes]:
            part, start = first, 0
            while part:
                yield part
                start += len(part)
                part = (
                    await service.value_pickle(*where, start)
                    if len(part) == VALUE_PART_BYTES
                    else b""
                )

        return StreamingResponse(parts(), headers=headers, media_type="application/octet-stream")
    return Response(
        await service.value_json(*where), headers=headers, media_type="application/json"
    )
