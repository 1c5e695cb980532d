"""From wire models to what the orchestrator takes: code as opaque bytes, the rest as raw documents."""

from __future__ import annotations

import base64
import binascii
import uuid

from lattice.api.models.schemas import (
    AddLangGraphTaskRequest,
    SaveTaskRequest,
    SubmittedTask,
    TaskDefinition,
)
from lattice.errors import InvalidRequestError
from lattice.ids import TaskId
from lattice.ports import CodeUpload, TaskUpload
from lattice.workflow import checks
from lattice.workflow.task import CodeForm

_DEFINITION_FIELDS = (
    "task_input",
    "task_output",
    "resources",
    "batch_config",
    "retry",
    "timeout",
    "runtime_env",
)


def decode_base64(text: str, field: str) -> bytes:
    """The bytes that `text` stands for. Raises InvalidRequestError naming `field`."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequestError(field, checks.shown(text[:100]), "base64 is allowed") from None


def task_upload(task: SaveTaskRequest | SubmittedTask, prefix: str = "") -> TaskUpload:
    """A task as the orchestrator takes it; `prefix` is put before the names of fields in refusals.

    Raises:
        InvalidRequestError: code that is empty or not base64, or a field that is not available.
    """
    if task.autoscaling is not None:
        raise InvalidRequestError(
            f"{prefix}autoscaling",
            checks.shown(task.autoscaling),
            "not available in this version: the setting max_replicas bounds all replicas; leave it out",
        )
    given = {name: getattr(task, name) for name in _DEFINITION_FIELDS}
    return TaskUpload(
        task_id=TaskId(task.task_id),
        name=task.task_name,
        definition={name: value for name, value in given.items() if value is not None},
        code=_code(task, prefix),
    )


def langgraph_upload(request: AddLangGraphTaskRequest) -> TaskUpload:
    """A LangGraph task as the orchestrator takes it, with a new id. Raises InvalidRequestError."""
    if request.task_type != "langgraph":
        raise InvalidRequestError(
            "task_type", checks.shown(request.task_type), "`langgraph` is allowed here"
        )
    return TaskUpload(
        task_id=TaskId(str(uuid.uuid4())),
        name=request.task_name,
        definition={} if request.resources is None else {"resources": request.resources},
        code=_pickle(request.code_ser, "code_ser"),
    )


def _code(task: TaskDefinition, prefix: str) -> CodeUpload | None:
    if task.code_ser is not None:
        return _pickle(task.code_ser, f"{prefix}code_ser")
    if task.serialized_code is not None:
        return _pickle(task.serialized_code, f"{prefix}serialized_code")
    if task.code_str is not None:
        if not task.code_str.strip():
            raise InvalidRequestError(
                f"{prefix}code_str", "no code", "source with a function or class is allowed"
            )
        return CodeUpload(CodeForm.SOURCE, task.code_str.encode())
    return None


def _pickle(text: str, field: str) -> CodeUpload:
    data = decode_base64(text, field)
    if not data:
        raise InvalidRequestError(field, "no code", "a pickled function or class is allowed")
    return CodeUpload(CodeForm.PICKLE, data)
