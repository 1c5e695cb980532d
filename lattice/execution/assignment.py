"""An attempt as the process that runs it is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lattice.execution.shape import variables_of
from lattice.ids import RunId, TaskId
from lattice.ports.execution import Argument, Job
from lattice.ports.tracing import SpanExport
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.task import Code


@dataclass(frozen=True, slots=True)
class Assignment:
    """An attempt as its worker gets it.

    Attributes:
        upstream: for each argument, which of the large outputs that come along holds it, or None.
        timed: the start is reported before the code runs, however short it is.
        has_gpu: GPUs were asked for.
        mailbox: name of the actor that wants to know when a long attempt begins.
        submitted: when the dispatcher took it, in seconds since the epoch.
        log_bytes: what is kept of what it prints, in bytes.
        trace: the trace context that it runs in; None if it is not traced.
        span_export: where its spans go.
        after: tasks of the same call that must have succeeded first.
        call: the number that the dispatcher gave to that call.
        sandbox: the limits of the sandbox that it runs in; None to run it in the worker's own process.
        environment: variables for the sandbox.
        secrets: values by name, filled in by the worker or the replica itself, which gets them beside this.
    """

    run_id: RunId
    task_id: TaskId
    attempt: int
    name: str
    code: Code
    arguments: tuple[Argument, ...]
    upstream: tuple[int | None, ...]
    output_keys: tuple[str, ...]
    batched: bool
    timed: bool
    has_gpu: bool
    storage_url: str
    inline_value_bytes: int
    mailbox: str
    submitted: float = 0.0
    log_bytes: int = 0
    trace: str | None = None
    span_export: SpanExport | None = None
    after: tuple[TaskId, ...] = ()
    call: int = 0
    sandbox: Sandbox | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def call_name(self) -> str:
        """What the Ray task is called that it is in, of all those that there are."""
        return f"{self.mailbox}/{self.call}"

    @classmethod
    def of(
        cls,
        job: Job,
        upstream: tuple[int | None, ...],
        *,
        storage_url: str,
        inline_value_bytes: int,
        mailbox: str,
        submitted: float = 0.0,
        log_bytes: int = 0,
        span_export: SpanExport | None = None,
        call: int = 0,
    ) -> Assignment:
        """What a worker is told of a job."""
        definition = job.definition
        return cls(
            run_id=job.run_id,
            task_id=job.task_id,
            attempt=job.attempt,
            name=job.name,
            code=definition.code,
            arguments=job.arguments,
            upstream=upstream,
            output_keys=job.output_keys,
            batched=definition.batch.enabled,
            timed=job.timed,
            has_gpu=definition.gpus > 0,
            storage_url=storage_url,
            inline_value_bytes=inline_value_bytes,
            mailbox=mailbox,
            submitted=submitted,
            log_bytes=log_bytes,
            trace=job.trace,
            span_export=None if job.trace is None else span_export,
            after=job.after,
            call=call,
            sandbox=definition.sandbox,
            environment={}
            if definition.sandbox is None
            else variables_of(definition.runtime_env, definition.tenant),
        )
