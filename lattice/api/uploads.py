"""From wire models to what the orchestrator takes: code as opaque bytes, the rest as raw documents."""

from __future__ import annotations

import asyncio
import base64
import binascii
import uuid
from collections.abc import Sequence

from lattice.api.models.schemas import (
    AddLangGraphTaskRequest,
    SaveTaskRequest,
    SubmittedTask,
    TaskDefinition,
)
from lattice.errors import InvalidRequestError
from lattice.ids import TaskId
from lattice.ports.service import CodeUpload, TaskUpload
from lattice.workflow import checks
from lattice.workflow.outline import Outline, may_have_class, outline
from lattice.workflow.task import CodeForm

_DEFINITION_FIELDS = (
    "task_input",
    "task_output",
    "resources",
    "batch_config",
    "autoscaling",
    "retry",
    "timeout",
    "runtime_env",
    "sandbox",
    "secrets",
)

_LANGGRAPH_FIELDS = ("resources", "secrets", "sandbox")

#: Source of that many characters is looked at on the event loop; more in a thread.
_LOOKED_AT_ONCE = 8 * 1024
_FUNCTION = Outline()


def decode_base64(text: str, field: str) -> bytes:
    """The bytes that `text` stands for. Raises InvalidRequestError naming `field`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(field, checks.shown(text[:100]), "base64 is allowed") from None


async def task_upload(task: SaveTaskRequest) -> TaskUpload:
    """A task as the orchestrator takes it. Raises InvalidRequestError: code that is empty or not base64."""
    return _task_upload(task, "", await _outlines([task]))


async def task_uploads(tasks: Sequence[SubmittedTask]) -> list[TaskUpload]:
    """Submitted tasks as the orchestrator takes them. Raises InvalidRequestError, as `task_upload`."""
    outlines = await _outlines(tasks)
    return [_task_upload(task, f"tasks[{place}].", outlines) for place, task in enumerate(tasks)]


def _task_upload(
    task: SaveTaskRequest | SubmittedTask, prefix: str, outlines: dict[str, Outline]
) -> TaskUpload:
    """`prefix` is put before the names of fields in refusals."""
    given = {name: getattr(task, name) for name in _DEFINITION_FIELDS}
    if task.autoscaling is not None:
        given["autoscaling"] = task.autoscaling.model_dump(exclude_none=True)
    return TaskUpload(
        task_id=TaskId(task.task_id),
        name=task.task_name,
        definition={name: value for name, value in given.items() if value is not None},
        code=_code(task, prefix, outlines),
    )


async def _outlines(tasks: Sequence[TaskDefinition]) -> dict[str, Outline]:
    """The outlines of all sources that may have classes, by text: many tasks often share one."""
    texts = {task.code_str for task in tasks if task.code_str and may_have_class(task.code_str)}

    def look() -> dict[str, Outline]:
        return {text: outline(text) for text in texts}

    if sum(map(len, texts)) <= _LOOKED_AT_ONCE:
        return look()
    return await asyncio.to_thread(look)


def langgraph_upload(request: AddLangGraphTaskRequest) -> TaskUpload:
    """A LangGraph task as the orchestrator takes it, with a new id. Raises InvalidRequestError."""
    if request.task_type != "langgraph":
        raise InvalidRequestError(
            "task_type", checks.shown(request.task_type), "`langgraph` is allowed here"
        )
    given = {name: getattr(request, name) for name in _LANGGRAPH_FIELDS}
    return TaskUpload(
        task_id=TaskId(str(uuid.uuid4())),
        name=request.task_name,
        definition={name: value for name, value in given.items() if value is not None},
        code=_pickle(request.code_ser, "code_ser"),
    )


def _code(task: TaskDefinition, prefix: str, outlines: dict[str, Outline]) -> CodeUpload | None:
    # A pickle is never looked into: its sender says what it is.
    said = Outline(last_is_class=bool(task.code_is_class))
    if task.code_ser is not None:
        return _pickle(task.code_ser, f"{prefix}code_ser", said)
    if task.serialized_code is not None:
        return _pickle(task.serialized_code, f"{prefix}serialized_code", said)
    if task.code_str is not None:
        if not task.code_str.strip():
            raise InvalidRequestError(
                f"{prefix}code_str", "no code", "source with a function or class is allowed"
            )
        found = outlines.get(task.code_str, _FUNCTION)
        return CodeUpload(CodeForm.SOURCE, task.code_str.encode(), found)
    return None


def _pickle(text: str, field: str, said: Outline = _FUNCTION) -> CodeUpload:
    data = decode_base64(text, field)
    if not data:
        raise InvalidRequestError(field, "no code", "a pickled function or class is allowed")
    return CodeUpload(CodeForm.PICKLE, data, said)
