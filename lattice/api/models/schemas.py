"""Wire models of the REST endpoints and of the messages on the WebSocket.

Field names and defaults are those of the specification (`/docs` shows them live). Models check the
form only; meaning (does this task exist, may this edge be) is checked by the workflow domain, whose
refusals name the field. Fields that a model does not know are ignored, as clients of the same protocol
send some of their own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints

from lattice.api.models import examples


def _example(*documents: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(documents)})


Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$"),
    Field(description="An id: letters, digits, `-` and `_`."),
]
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    Field(
        description="A name for people; for code given as source, that of the function.",
    ),
]
#: Decoded, and refused if it is not base64, where the request is translated for the orchestrator.
Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
Status = Literal["success"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore")


class StatusResponse(_Model):
    """What was asked is done and durable."""

    status: Status = "success"


# -- workflows ---------------------------------------------------------------------------------


class CreateWorkflowResponse(StatusResponse):
    workflow_id: str


class AddTaskRequest(_Model):
    model_config = _example(examples.ADD_TASK)

    workflow_id: Id
    task_type: str = Field(description="`code`; LangGraph tasks have their own endpoint.")
    task_name: Name


class AddTaskResponse(StatusResponse):
    task_id: str


class Autoscaling(BaseModel):
    """Bounds and delays of a task's replicas. What is left out is as the service's settings say."""

    model_config = ConfigDict(
        # Unknown keys get as far as the domain, which refuses them with those that are allowed.
        extra="allow",
        strict=True,
        json_schema_extra={
            "additionalProperties": False,
            "examples": [{"min_replicas": 0, "max_replicas": 2, "warm_up": True}],
        },
    )

    min_replicas: int | None = Field(
        default=None, description="Replicas that stay when there are no calls."
    )
    max_replicas: int | None = Field(default=None, description="Most replicas.")
    target_ongoing_requests: float | None = Field(
        default=None, description="Calls, waiting and running, for which one replica is enough."
    )
    upscale_delay: float | None = Field(
        default=None, description="Seconds that more calls must last before a replica is added."
    )
    downscale_delay: float | None = Field(
        default=None, description="Seconds that fewer calls must last before a replica is ended."
    )
    warm_up: bool | None = Field(
        default=None, description="Whether a replica is started when the task is saved."
    )


class TaskDefinition(_Model):
    """What a task does, takes, returns and needs. `code_ser` wins where both codes are given."""

    task_input: dict[str, Any] = Field(
        description="Numbered input parameters: each has a `key`, an `input_schema` (`from_user` with a "
        "JSON `value`, or `from_task` with a reference `task_id.output_key`), and a `data_type`.",
        examples=[
            {
                "input_params": {
                    "1": {
                        "key": "text",
                        "input_schema": "from_user",
                        "data_type": "str",
                        "value": "hello",
                    }
                }
            }
        ],
    )
    task_output: dict[str, Any] = Field(
        description="Numbered output parameters: each has a `key` and a `data_type`.",
        examples=[{"output_params": {"1": {"key": "result", "data_type": "str"}}}],
    )
    code_str: str | None = Field(
        default=None,
        description="A module's source. The function named like the task is run, else the last function "
        "or class at the top level.",
        examples=['def my_task(params):\n    return {"result": params["text"].upper()}\n'],
    )
    code_ser: Base64 | None = Field(
        default=None, description="A function or class pickled with cloudpickle, in base64."
    )
    serialized_code: Base64 | None = Field(default=None, description="Another name for `code_ser`.")
    code_is_class: bool | None = Field(
        default=None,
        description="Whether the pickle is a class, which is constructed once in each of its replicas. The "
        "service does not look into pickles; of source it finds out by itself.",
        examples=[None],
    )
    resources: dict[str, Any] | None = Field(
        default=None,
        description="`cpu` and `gpu` may be fractions; `cpu_mem` and `gpu_mem` are in MiB.",
        examples=[{"cpu": 1, "cpu_mem": 256}],
    )
    batch_config: dict[str, Any] | None = Field(
        default=None,
        description="`enabled`, `batch_size`, and `batch_timeout` in seconds: the code then takes a list "
        "of calls and returns a list as long. `max_concurrent_batches` lists, 1 by default, are worked on "
        "at a time by each replica, each in a thread of its own.",
        examples=[
            {
                "enabled": False,
                "batch_size": 10,
                "batch_timeout": 1.0,
                "max_concurrent_batches": 1,
            }
        ],
    )
    retry: dict[str, Any] | None = Field(
        default=None,
        description="For code that fails: `max_attempts`; `backoff` and `max_backoff` in seconds, of which "
        "up to half is left to chance; and `on`, names of exception classes (`ValueError`, "
        "`requests.exceptions.Timeout`, `TaskTimeoutError` for time-outs) that alone are tried again.",
        examples=[{"max_attempts": 3, "backoff": 1.0, "on": ["OSError", "TaskTimeoutError"]}],
    )
    timeout: float | None = Field(
        default=None, description="Longest attempt, in seconds.", examples=[60]
    )
    runtime_env: dict[str, Any] | None = Field(
        default=None,
        description="`env_vars` and `pip` packages that the code needs.",
        examples=[{}],
    )
    sandbox: bool | dict[str, Any] | None = Field(
        default=None,
        description="Whether the code runs in a sandbox (not for batched tasks, with `gpu` or `gpu_mem`, and "
        "classes): processes of its own without network, with a read-only "
        "file system but for a scratch folder, and limits, which an object may change: `cpu_seconds` (300), "
        "`memory` (1024) and `scratch` (256) in MiB, `processes` (64). It takes any input and returns plain data.",
        examples=[None, True, {"cpu_seconds": 60, "memory": 512}],
    )
    secrets: list[str] | None = Field(
        default=None,
        description="Names of secrets that the service has (setting `secrets_dir`); their values are in the "
        "environment of the code while it runs, and are stored nowhere. They are read for each attempt; a replica, "
        "of batched tasks, with `gpu` or `gpu_mem`, and classes, loads its code anew once one has changed.",
        examples=[None],
    )
    autoscaling: Autoscaling | None = Field(
        default=None,
        description="For tasks that have replicas: batched, with `gpu` or `gpu_mem`, or a class.",
        examples=[None],
    )


class SaveTaskRequest(TaskDefinition):
    model_config = _example(examples.SAVE_SPLIT, examples.SAVE_COUNT)

    workflow_id: Id
    task_id: Id
    task_name: Name | None = Field(
        default=None, description="A new name; by default the old one stays."
    )


class SaveTaskResponse(StatusResponse):
    pass


class AddEdgeRequest(_Model):
    model_config = _example(examples.EDGE)

    workflow_id: Id
    source_task_id: Id
    target_task_id: Id


class AddEdgeResponse(StatusResponse):
    pass


class DeleteTaskRequest(_Model):
    model_config = _example(examples.TASK)

    workflow_id: Id
    task_id: Id


class GetTasksResponse(StatusResponse):
    tasks: list[dict[str, str]] = Field(
        description="`id`, `name`, `type` and `saved` of each task, as strings."
    )


#: Of a run, in seconds.
Deadline = Annotated[
    float | None,
    Field(
        description="Seconds from this request within which the run has to end; else it fails, and "
        "`error` in its last message says so. By default the setting `default_deadline`."
    ),
]


class RunWorkflowRequest(_Model):
    model_config = _example(examples.WORKFLOW, examples.RUN_WITHIN)

    workflow_id: Id
    deadline: Deadline = None


class RunWorkflowResponse(StatusResponse):
    run_id: str


class SubmittedTask(TaskDefinition):
    """A task of a workflow that is submitted whole. Its `task_id` is chosen by the sender."""

    task_id: Id
    task_name: Name


class SubmitWorkflowRequest(_Model):
    model_config = _example(examples.SUBMIT)

    tasks: list[SubmittedTask] = Field(min_length=1)
    edges: list[tuple[Id, Id]] = Field(
        default_factory=list,
        description="Pairs of source and target, beside what references imply.",
    )
    deadline: Deadline = None


class SubmitWorkflowResponse(StatusResponse):
    workflow_id: str
    run_id: str


# -- runs --------------------------------------------------------------------------------------

RunState = Literal["running", "succeeded", "failed", "cancelled"]


class RunSummary(_Model):
    run_id: str
    workflow_id: str
    status: RunState
    created: str = Field(description="ISO 8601, UTC.")
    finished: str | None
    deadline: str | None = Field(default=None, description="When it has to have ended, if ever.")
    retry_of: str | None = Field(
        default=None, description="The run whose results it took over, if it did."
    )
    tenant: str | None = Field(
        default=None, description="Whose it is, where the service has API keys."
    )
    trace_id: str | None = Field(
        default=None, description="The trace of its request, where traces are written."
    )


class TaskReport(_Model):
    task_id: str
    name: str
    state: str = Field(
        description="waiting, queued, running, backing_off, succeeded, failed, skipped or cancelled."
    )
    attempt: int = Field(description="0 before the first, and for a result that was taken over.")
    started: str | None
    finished: str | None
    error: dict[str, Any] | None
    timing: dict[str, float] | None = Field(
        default=None,
        description="Seconds of the last attempt: `queued` before it began, apart from these those in which a "
        "replica was `starting` or its batch filled (`batching`), and `running` once the task has ended.",
        examples=[{"queued": 0.012, "starting": 0.0, "batching": 0.05, "running": 1.5}],
    )
    waiting_for: str | None = Field(
        default=None,
        description="What a task that has not begun, or not again, waits for, for people.",
        examples=["a free CPU: 2 asked, 0 of 4 free"],
    )


class RunReport(RunSummary):
    last_seq: int = Field(description="Number of the run's last message.")
    tasks: list[TaskReport]


class ListRunsResponse(StatusResponse):
    runs: list[RunSummary]


class DescribeRunResponse(StatusResponse):
    run: RunReport


class CancelRunResponse(StatusResponse):
    run_status: RunState = Field(
        description="The run's status now; a run that had ended stays as it ended."
    )


class RetryRunResponse(StatusResponse):
    run_id: str = Field(description="The new run.")


class DeleteRunsResponse(StatusResponse):
    deleted: int = Field(description="How many runs; if `limit`, there may be more.")


class TaskResultResponse(StatusResponse):
    result: dict[str, Any] = Field(
        description="Each output: its value where that is JSON and small, else a description with a `url`."
    )


class LogEntry(_Model):
    """Text that an attempt of a task has printed or logged; the texts in their order are what it printed."""

    attempt: int
    offset: int = Field(
        description="Where it begins, in bytes of all that the attempt has printed."
    )
    time: str = Field(description="ISO 8601, UTC.")
    stream: Literal["stdout", "stderr", "log"]
    level: str | None = Field(default=None, description="Of a record of `logging`.")
    logger: str | None = Field(default=None, description="Of a record of `logging`.")
    text: str
    cut: int = Field(description="Bytes that were printed before it and not kept.")


class TaskLogsResponse(StatusResponse):
    logs: list[LogEntry]
    next: str | None = Field(
        description="As `after`, it gives the next page; null if there is none."
    )


# -- LangGraph ---------------------------------------------------------------------------------


class AddLangGraphTaskRequest(_Model):
    model_config = _example(examples.ADD_LANGGRAPH)

    workflow_id: Id
    task_type: str = Field(default="langgraph", description="`langgraph`.")
    task_name: Name
    code_ser: Base64 = Field(
        validation_alias=AliasChoices("code_ser", "serialized_code"),
        description="A function pickled with cloudpickle, in base64. `serialized_code` is another name.",
    )
    resources: dict[str, Any] | None = None
    secrets: list[str] | None = Field(
        default=None,
        description="Names of secrets that the service has (setting `secrets_dir`); their values are in the "
        "environment of the function while it runs, and are stored nowhere.",
        examples=[None],
    )
    sandbox: bool | dict[str, Any] | None = Field(
        default=None,
        description="Refused: functions that are called by themselves have no sandbox. Tasks of workflows do.",
        examples=[None],
    )


class RunLangGraphTaskRequest(_Model):
    model_config = _example(examples.RUN_LANGGRAPH)

    workflow_id: Id
    task_id: Id
    args: Base64 = Field(description="A tuple or list of arguments, pickled, in base64.")
    kwargs: Base64 = Field(description="A dict of keyword arguments, pickled, in base64.")
    result_format: Literal["json", "pickle"] = Field(
        default="json",
        description="`pickle` asks for the exact object: `result` is then its pickle in base64.",
    )


class RunLangGraphTaskResponse(StatusResponse):
    result: Any


# -- workers -----------------------------------------------------------------------------------


#: Anything that can be shown: control characters would upset logs and databases.
NodeName = Annotated[
    str, StringConstraints(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")
]


class ConnectWorkerRequest(_Model):
    node_ip: NodeName = Field(examples=["127.0.0.1"])
    node_id: NodeName = Field(examples=["node-1"])
    resources: dict[str, Any] = Field(
        description="`cpu`, `cpu_mem` in MiB, and `gpu_resource`: a GPU's `gpu_id`, `gpu_mem` in MiB and `gpu_num` "
        "by its index.",
        examples=[
            {
                "cpu": 8,
                "cpu_mem": 16384,
                "gpu_resource": {"0": {"gpu_id": 0, "gpu_mem": 8192, "gpu_num": 1}},
            }
        ],
    )


class ConnectWorkerResponse(StatusResponse):
    pass


class DisconnectWorkerRequest(_Model):
    node_id: NodeName = Field(examples=["node-1"])
    leaving: bool = Field(
        default=False,
        examples=[False],
        description="It will not be back: it is forgotten once the cluster does not have it.",
    )


class GetRayPortResponse(StatusResponse):
    port: int


class WorkersResponse(StatusResponse):
    workers: list[dict[str, Any]] = Field(
        description="Registered workers, and nodes of the engine that nobody registered: `node_id`, `node_ip`, "
        "`status` (`active`, `waiting`, `lost`, `disconnected`, `unregistered`), `engine_node_id`, `gone_since` "
        "(since when the cluster does not have it), `running` tasks, `resources`."
    )


# -- service -----------------------------------------------------------------------------------


class HealthResponse(_Model):
    """Who answers. Clients compare the versions with their own before they send pickled code."""

    status: Literal["ok"] = "ok"
    version: str
    protocol: int = Field(
        default=1, description="Which clients it understands: see the header `Lattice-Protocol`."
    )
    python: str
    cloudpickle: str


class ReadyResponse(_Model):
    """Runs can be started."""

    status: Literal["ready"] = "ready"


class ErrorResponse(_Model):
    """Every refusal: what was found and what to do."""

    detail: str
