"""What an operator decides: bounds, defaults, and how long things are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lattice.ids import Tenant
from lattice.workflow.retry import RetryPolicy


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what is accepted: tasks, bytes of a rendered result, seconds of a call, work under way.

    Attributes:
        max_live_runs: most runs that have not ended.
        max_unfinished_tasks: most tasks of all those runs together that have not ended.
        max_log_bytes: what is kept of what an attempt prints.
        no_node_seconds: how long a task waits for a node that could hold it; None for ever.
        max_edges_per_workflow: most pairs of tasks with an edge, explicit or by a reference.
        max_workflow_bytes: most bytes of all tasks of a workflow, without their code.
        max_code_bytes: largest code of a task, as source or pickle.
        max_batch_size: most calls in a batch that a task may ask for.
        max_timeout, max_deadline: longest that a task and a run may ask for, in seconds, and what those have
            that ask for nothing; None sets no limit.
        max_workflows_per_tenant, max_live_runs_per_tenant: None sets no limit beside those for all.
    """

    max_tasks_per_workflow: int
    max_result_bytes: int
    call_timeout: float
    max_live_runs: int = 10_000
    max_unfinished_tasks: int = 200_000
    max_log_bytes: int = 64 * 1024
    no_node_seconds: float | None = 30.0
    max_edges_per_workflow: int = 200_000
    max_workflow_bytes: int = 64 * 1024 * 1024
    max_code_bytes: int = 16 * 1024 * 1024
    max_batch_size: int = 10_000
    max_timeout: float | None = None
    max_deadline: float | None = None
    max_workflows_per_tenant: int | None = None
    max_live_runs_per_tenant: int | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for tasks, when they are saved, and for runs that do not say so themselves.

    `timeout` and `deadline` are in seconds; None sets no limit.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    timeout: float | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Tenancy:
    """What tenants may do beside each other.

    Attributes:
        share_definitions: calls of one task may share a process and a batch whatever tenants they are of.
        max_concurrent_tasks: how many attempts of a tenant's tasks run at a time; no entry sets no limit.
    """

    share_definitions: bool = False
    max_concurrent_tasks: Mapping[Tenant, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept, in seconds, and how many; None keeps them for ever.

    Attributes:
        run_seconds: a run, after its end.
        runs: the finished runs that ended last.
        reply_seconds: the answer to a request with an idempotency key.
        node_seconds: a registered worker that the engine does not have, unless it said that it leaves.
        period: from one look to the next.
        batch: most things of a kind that are removed at a time.
    """

    run_seconds: float | None = None
    runs: int | None = None
    reply_seconds: float | None = None
    node_seconds: float | None = None
    period: float = 60.0
    batch: int = 100
