"""Workflows: making, changing and running them, and watching a run."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, WebSocket

from lattice.api.dependencies import (
    AnyId,
    AppHolder,
    Idempotency,
    Service,
    get_orchestrator,
    set_orchestrator,
)
from lattice.api.errors import refusals
from lattice.api.following import follow_run, parse_seq
from lattice.api.models.schemas import (
    AddEdgeRequest,
    AddEdgeResponse,
    AddTaskRequest,
    AddTaskResponse,
    CreateWorkflowResponse,
    DeleteRunsResponse,
    DeleteTaskRequest,
    GetTasksResponse,
    RunWorkflowRequest,
    RunWorkflowResponse,
    SaveTaskRequest,
    SaveTaskResponse,
    StatusResponse,
    SubmitWorkflowRequest,
    SubmitWorkflowResponse,
)
from lattice.api.requests import JSONRoute
from lattice.api.streams import send_over_websocket
from lattice.api.uploads import task_upload, task_uploads
from lattice.ids import RunId, TaskId, WorkflowId

__all__ = ["get_orchestrator", "router", "set_orchestrator"]

router = APIRouter(tags=["workflow"], route_class=JSONRoute)


@router.post("/create_workflow", responses=refusals(400, 409))
async def create_workflow(service: Service, once: Idempotency) -> CreateWorkflowResponse:
    """Makes an empty workflow. The request has no body."""
    return CreateWorkflowResponse(workflow_id=await service.create_workflow(once))


@router.post("/add_task", responses=refusals(400, 404, 409))
async def add_task(request: AddTaskRequest, service: Service, once: Idempotency) -> AddTaskResponse:
    """Adds a task, which cannot run before it has been saved with code."""
    task_id = await service.add_task(
        WorkflowId(request.workflow_id), request.task_type, request.task_name, once
    )
    return AddTaskResponse(task_id=task_id)


@router.post("/save_task", responses=refusals(400, 404))
async def save_task(request: SaveTaskRequest, service: Service) -> SaveTaskResponse:
    """Saves what a task does, takes, returns and needs. Without code, the code it has stays."""
    upload = await task_upload(request)
    await service.save_task(WorkflowId(request.workflow_id), upload, add_edges=False)
    return SaveTaskResponse()


@router.post("/save_task_and_add_edge", responses=refusals(400, 404))
async def save_task_and_add_edge(request: SaveTaskRequest, service: Service) -> SaveTaskResponse:
    """Saves a task and adds an edge from each task that its input refers to."""
    upload = await task_upload(request)
    await service.save_task(WorkflowId(request.workflow_id), upload, add_edges=True)
    return SaveTaskResponse()


@router.post("/add_edge", responses=refusals(400, 404))
async def add_edge(request: AddEdgeRequest, service: Service) -> AddEdgeResponse:
    """Makes the target run after the source. An edge that closes a cycle is refused."""
    await service.add_edge(
        WorkflowId(request.workflow_id),
        TaskId(request.source_task_id),
        TaskId(request.target_task_id),
    )
    return AddEdgeResponse()


@router.post("/del_edge", responses=refusals(400, 404))
async def del_edge(request: AddEdgeRequest, service: Service) -> StatusResponse:
    """Removes an edge. The order that a reference between two tasks implies stays."""
    await service.del_edge(
        WorkflowId(request.workflow_id),
        TaskId(request.source_task_id),
        TaskId(request.target_task_id),
    )
    return StatusResponse()


@router.post("/del_task", responses=refusals(400, 404))
async def del_task(request: DeleteTaskRequest, service: Service) -> StatusResponse:
    """Removes a task and its edges. Runs that have begun keep it."""
    await service.del_task(WorkflowId(request.workflow_id), TaskId(request.task_id))
    return StatusResponse()


@router.get("/get_workflow_tasks/{workflow_id}", responses=refusals(404))
async def get_workflow_tasks(workflow_id: AnyId, service: Service) -> GetTasksResponse:
    """The tasks of a workflow, in the order in which they were added."""
    return GetTasksResponse(tasks=await service.workflow_tasks(WorkflowId(workflow_id)))


@router.post("/run_workflow", responses=refusals(400, 404, 409))
async def run_workflow(
    request: RunWorkflowRequest, service: Service, once: Idempotency
) -> RunWorkflowResponse:
    """Starts a run of the workflow as it is now; changing the workflow later does not touch the run.

    Its messages come over the WebSocket `/get_workflow_res/{workflow_id}/{run_id}` and as server-sent
    events from `/runs/{run_id}/events`, from the first one on, whenever asked for.
    """
    run_id = await service.run_workflow(
        WorkflowId(request.workflow_id), once, deadline=request.deadline
    )
    return RunWorkflowResponse(run_id=run_id)


@router.post("/submit_workflow", responses=refusals(400, 404, 409))
async def submit_workflow(
    request: SubmitWorkflowRequest, service: Service, once: Idempotency
) -> SubmitWorkflowResponse:
    """Makes a whole workflow and starts a run of it, all or nothing."""
    uploads = await task_uploads(request.tasks)
    edges = [(TaskId(source), TaskId(target)) for source, target in request.edges]
    workflow_id, run_id = await service.submit_workflow(
        uploads, edges, once, deadline=request.deadline
    )
    return SubmitWorkflowResponse(workflow_id=workflow_id, run_id=run_id)


@router.delete("/workflows/{workflow_id}", responses=refusals(404))
async def delete_workflow(workflow_id: AnyId, service: Service) -> StatusResponse:
    """Deletes a workflow with its tasks. Its runs go on, and stay until they are deleted themselves."""
    await service.delete_workflow(WorkflowId(workflow_id))
    return StatusResponse()


@router.delete("/workflows/{workflow_id}/runs")
async def delete_runs(
    workflow_id: AnyId,
    service: Service,
    limit: Annotated[int, Query(ge=1, le=10_000, description="Most runs to delete.")] = 1000,
) -> DeleteRunsResponse:
    """Deletes the runs of a workflow that have ended, with their messages and values.

    The workflow stays, and so do runs that go on. A workflow that is not there has no runs.
    """
    deleted = await service.delete_runs(WorkflowId(workflow_id), limit)
    return DeleteRunsResponse(deleted=deleted)


@router.websocket("/get_workflow_res/{workflow_id}/{run_id}")
async def get_workflow_res(
    websocket: WebSocket,
    workflow_id: AnyId,
    run_id: AnyId,
    service: Service,
    holder: AppHolder,
    after: Annotated[str, Query()] = "0",
    logs: Annotated[bool, Query()] = False,
) -> None:
    """Sends the messages of a run after number `after`, each as it comes, and closes after the last.

    With `logs` also messages of type `task_log`, without number: what tasks have printed so far, then what they
    print.

    Close codes: 1000 after the last message, 4400 for a bad `after`, 4404 for an unknown run, 1013 when
    the orchestrator stays unavailable or too many streams are open (connect again, with `after`), 1011 for a defect.
    """
    await send_over_websocket(
        websocket,
        lambda: follow_run(
            service,
            RunId(run_id),
            WorkflowId(workflow_id),
            parse_seq(after, "after"),
            holder.streams,
            logs=logs,
        ),
        holder.open_streams,
    )
