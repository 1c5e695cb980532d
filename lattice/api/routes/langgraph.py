"""LangGraph nodes: functions that are called by themselves, with any arguments."""

from __future__ import annotations

import base64

from fastapi import APIRouter
from starlette.responses import Response

from lattice.api.dependencies import Idempotency, Service
from lattice.api.errors import refusals
from lattice.api.models.schemas import (
    AddLangGraphTaskRequest,
    AddTaskResponse,
    RunLangGraphTaskRequest,
    RunLangGraphTaskResponse,
)
from lattice.api.requests import JSONRoute
from lattice.api.responses import SafeJSONResponse
from lattice.api.uploads import decode_base64, langgraph_upload
from lattice.ids import TaskId, WorkflowId

router = APIRouter(tags=["langgraph"], route_class=JSONRoute)


@router.post("/add_langgraph_task", responses=refusals(400, 404, 409))
async def add_langgraph_task(
    request: AddLangGraphTaskRequest, service: Service, once: Idempotency
) -> AddTaskResponse:
    """Adds a function that `run_langgraph_task` can call at once."""
    task_id = await service.add_langgraph_task(
        WorkflowId(request.workflow_id), langgraph_upload(request), once
    )
    return AddTaskResponse(task_id=task_id)


@router.post(
    "/run_langgraph_task",
    response_model=RunLangGraphTaskResponse,
    responses=refusals(400, 404, 504),
)
async def run_langgraph_task(request: RunLangGraphTaskRequest, service: Service) -> Response:
    """Calls the function and answers with what it returned; an exception is answered 500 with its
    traceback.

    An `Idempotency-Key` means nothing here, as results of calls are not kept: sent again, it runs again.
    """
    answer = await service.run_langgraph_task(
        WorkflowId(request.workflow_id),
        TaskId(request.task_id),
        decode_base64(request.args, "args"),
        decode_base64(request.kwargs, "kwargs"),
    )
    if request.result_format == "pickle":
        result: object = base64.b64encode(answer.pickled).decode("ascii")
    else:
        result = answer.json
    return SafeJSONResponse({"status": "success", "result": result})
