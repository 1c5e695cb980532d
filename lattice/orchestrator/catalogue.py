"""The workflows: read from the store when they are needed, edited in memory, written as small changes.

Every edit returns the writes that make it durable; whoever calls appends them to the journal before
the next await, so that writes and edits have one order.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lattice.errors import InvalidRequestError, TooLargeError, WorkflowNotFoundError
from lattice.ids import Digest, TaskId, Tenant, WorkflowId
from lattice.orchestrator.journal import Journal
from lattice.orchestrator.policies import Defaults, Limits
from lattice.ports.environment import Clock, IdSource
from lattice.ports.removal import DeleteWorkflow, Removal
from lattice.ports.secrets import Secrets, key_of
from lattice.ports.service import CodeUpload, TaskUpload
from lattice.ports.store import (
    DeleteEdge,
    DeleteTask,
    PutBlob,
    PutEdge,
    PutTask,
    PutWorkflow,
    Store,
    Write,
)
from lattice.workflow import checks
from lattice.workflow.graph import Workflow
from lattice.workflow.retry import with_defaults
from lattice.workflow.task import (
    Code,
    CodeForm,
    Task,
    TaskKind,
    check_isolation,
    check_outputs,
    check_scaling,
)

#: How many workflows are kept in memory, and of how many characters of stored text; the others are read again when
#: they are needed.
_KEPT = 1_000
_KEPT_SIZE = 64 * 1024 * 1024


@dataclass(slots=True)
class _Kept:
    """A workflow in memory, and the characters of the stored text of each task and of all."""

    workflow: Workflow
    sizes: dict[TaskId, int]
    size: int

    def take(self, task_id: TaskId, size: int) -> None:
        """A task has another size from now on, which is 0 if it is gone."""
        self.size += size - self.sizes.pop(task_id, 0)
        if size:
            self.sizes[task_id] = size


class Catalogue:
    """Workflows by id. `counts`: how many each tenant has in the store."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        clock: Clock,
        ids: IdSource,
        limits: Limits,
        defaults: Defaults,
        counts: Mapping[Tenant | None, int],
        secrets: Secrets,
    ) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._ids = ids
        self._limits = limits
        self._defaults = defaults
        #: How many workflows each tenant has.
        self._counts = dict(counts)
        self._secrets = secrets
        self._workflows: OrderedDict[WorkflowId, _Kept] = OrderedDict()
        self._size = 0
        self._loading: dict[WorkflowId, asyncio.Future[None]] = {}

    async def workflow(self, workflow_id: WorkflowId, tenant: Tenant | None = None) -> Workflow:
        """Raises WorkflowNotFoundError, with `tenant` also for what is another's."""
        # All who ask meanwhile share a look into the store, and look again if it was deleted since then: what was
        # read before must not come back.
        while workflow_id not in self._workflows:
            if workflow_id not in self._loading:
                loading = asyncio.ensure_future(self._load(workflow_id))
                # All who asked may have gone when it fails.
                loading.add_done_callback(lambda done: done.cancelled() or done.exception())
                self._loading[workflow_id] = loading
            await asyncio.shield(self._loading[workflow_id])
        self._workflows.move_to_end(workflow_id)
        found = self._workflows[workflow_id].workflow
        if tenant not in (None, found.tenant):
            raise WorkflowNotFoundError(workflow_id)
        return found

    async def _load(self, workflow_id: WorkflowId) -> None:
        try:
            # What was evicted may have writes that are not durable yet.
            await self._journal.barrier()
            record = await asyncio.to_thread(self._store.load_workflow, workflow_id)
            if record is None:
                raise WorkflowNotFoundError(workflow_id)
            tasks = [Task.from_document(json.loads(text)) for text in record.tasks]
            sizes = {
                task.task_id: len(text) for task, text in zip(tasks, record.tasks, strict=True)
            }
            self._keep(Workflow(workflow_id, tasks, record.edges, record.tenant), sizes)
        finally:
            del self._loading[workflow_id]

    def create(self, tenant: Tenant | None) -> tuple[Workflow, list[Write]]:
        """A new workflow without tasks. Raises TooLargeError."""
        self._check_another(tenant)
        workflow = Workflow(WorkflowId(self._ids.new_id()), tenant=tenant)
        self.count_new(workflow)
        self._keep(workflow, {})
        return workflow, [PutWorkflow(workflow.workflow_id, self._clock.now(), tenant)]

    def add_task(
        self, workflow: Workflow, task_id: TaskId, name: str, kind: TaskKind
    ) -> list[Write]:
        """Adds a task without code. Raises InvalidRequestError and TooLargeError."""
        self._check_count(len(workflow.tasks) + 1)
        task = Task(task_id, checks.text(name, "task_name"), kind)
        write = self._put(workflow, task)
        workflow.add_task(task)
        self._grow(write)
        return [write]

    def save_task(self, workflow: Workflow, upload: TaskUpload, *, add_edges: bool) -> list[Write]:
        """Saves what a user sent in a task.

        Code that is not sent stays as it was; all else is replaced.

        Raises:
            TaskNotFoundError, InvalidRequestError, CycleError, TooLargeError: nothing was changed.
        """
        old = workflow.task(upload.task_id)
        name = old.name if upload.name is None else upload.name
        code = old.code
        writes: list[Write] = []
        if upload.code is not None:
            code, blob = self._code(upload.code, name)
            writes.append(blob)
        task = self._task(
            workflow.tenant, self._definition(upload), old.task_id, name, old.kind, code
        )
        self._check_edges(workflow.edge_count_with(task))
        write = self._put(workflow, task)
        added = workflow.save_task(task, add_edges=add_edges)
        self._grow(write)
        writes.append(write)
        writes += [PutEdge(workflow.workflow_id, source, target) for source, target in added]
        return writes

    def add_saved_task(self, workflow: Workflow, upload: TaskUpload, kind: TaskKind) -> list[Write]:
        """Adds a task with all that it needs at once. Raises InvalidRequestError and TooLargeError."""
        assert upload.name is not None
        assert upload.code is not None
        code, blob = self._code(upload.code, upload.name)
        task = _task(upload.definition, upload.task_id, upload.name, kind, code)
        self._check_secrets(task, workflow.tenant)
        self._check_count(len(workflow.tasks) + 1)
        write = self._put(workflow, task)
        workflow.add_task(task)
        self._grow(write)
        return [blob, write]

    def add_edge(self, workflow: Workflow, source: TaskId, target: TaskId) -> list[Write]:
        """Raises TaskNotFoundError, InvalidRequestError, CycleError and TooLargeError."""
        if not workflow.has_edge(source, target):
            self._check_edges(workflow.edge_count + 1)
        if workflow.add_edge(source, target):
            return [PutEdge(workflow.workflow_id, source, target)]
        return []

    def del_edge(self, workflow: Workflow, source: TaskId, target: TaskId) -> list[Write]:
        """Raises TaskNotFoundError and EdgeNotFoundError."""
        if workflow.del_edge(source, target):
            return [DeleteEdge(workflow.workflow_id, source, target)]
        return []

    def del_task(self, workflow: Workflow, task_id: TaskId) -> list[Write]:
        """Raises TaskNotFoundError."""
        workflow.del_task(task_id)
        kept = self._workflows[workflow.workflow_id]
        self._size -= kept.sizes[task_id]
        kept.take(task_id, 0)
        return [DeleteTask(workflow.workflow_id, task_id)]

    def delete(self, workflow: Workflow) -> list[Removal]:
        """Forgets a workflow."""
        self._forget(workflow.workflow_id)
        self._counts[workflow.tenant] -= 1
        return [DeleteWorkflow(workflow.workflow_id)]

    def submit(
        self,
        uploads: Sequence[TaskUpload],
        edges: Sequence[tuple[TaskId, TaskId]],
        tenant: Tenant | None,
    ) -> tuple[Workflow, list[Write]]:
        """A new workflow with all its tasks and edges.

        Raises:
            InvalidRequestError, TooLargeError, TaskNotFoundError: nothing was made. References and
                cycles are checked by the workflow's `graph`.
        """
        self._check_another(tenant)
        self._check_count(len(uploads))
        workflow_id = WorkflowId(self._ids.new_id())
        writes: list[Write] = [PutWorkflow(workflow_id, self._clock.now(), tenant)]
        saved: dict[TaskId, Task] = {}
        size = 0
        blobs: dict[Digest, PutBlob] = {}
        for upload in uploads:
            if upload.name is None or upload.code is None:
                raise InvalidRequestError(
                    f"tasks.{upload.task_id}",
                    "no code" if upload.name else "no task_name",
                    "a submitted task needs a task_name and code_str or code_ser",
                )
            code, blob = self._code(upload.code, upload.name)
            definition = self._definition(upload)
            task = self._task(tenant, definition, upload.task_id, upload.name, TaskKind.CODE, code)
            if task.task_id in saved:
                raise InvalidRequestError(
                    "task_id", f"{task.task_id!r} twice", "each task needs an id of its own"
                )
            saved[task.task_id] = task
            blobs[blob.digest] = blob
            write = _put(workflow_id, task)
            size += len(write.document)
            writes.append(write)
        self._check_size(size)
        writes += blobs.values()
        self._check_edges(len(set(edges)))
        # All at once, and then one look at the whole: edge by edge would take the square of the time.
        workflow = Workflow(workflow_id, saved.values(), tenant=tenant)
        workflow.add_edges(edges)
        self._check_edges(workflow.edge_count)
        writes += [PutEdge(workflow_id, source, target) for source, target in workflow.edges]
        return workflow, writes

    def _task(
        self,
        tenant: Tenant | None,
        definition: Mapping[str, object],
        task_id: TaskId,
        name: str,
        kind: TaskKind,
        code: Code | None,
    ) -> Task:
        """The task that a user describes, within the service's limits. Raises InvalidRequestError."""
        task = _task(definition, task_id, name, kind, code)
        self._check_secrets(task, tenant)
        most = self._limits.max_batch_size
        if task.batch.batch_size > most:
            raise InvalidRequestError(
                "batch_config.batch_size",
                str(task.batch.batch_size),
                f"at most {most} are allowed (setting max_batch_size)",
            )
        longest = self._limits.max_timeout
        return replace(task, timeout=checks.within(task.timeout, "timeout", longest, "max_timeout"))

    def _check_secrets(self, task: Task, tenant: Tenant | None) -> None:
        for secret in task.secrets:
            key = key_of(secret, tenant)
            if not self._secrets.has(key):
                raise InvalidRequestError(
                    "secrets",
                    f"{secret!r}, which the service does not have",
                    f"whoever runs the service puts it into the file {key} in its `secrets_dir`",
                )

    def _definition(self, upload: TaskUpload) -> Mapping[str, object]:
        """What a user saves, with the service's defaults for what is not said."""
        definition = with_defaults(upload.definition, self._defaults.retry)
        if self._defaults.timeout is None:
            return definition
        return {"timeout": self._defaults.timeout, **definition}

    def _check_count(self, count: int) -> None:
        most = self._limits.max_tasks_per_workflow
        if count > most:
            raise TooLargeError("max_tasks_per_workflow", count, most, "tasks")

    def _check_size(self, size: int) -> None:
        most = self._limits.max_workflow_bytes
        if size > most:
            raise TooLargeError("max_workflow_bytes", size, most, "bytes of its tasks")

    def _check_edges(self, count: int) -> None:
        most = self._limits.max_edges_per_workflow
        if count > most:
            raise TooLargeError("max_edges_per_workflow", count, most, "edges")

    def _check_another(self, tenant: Tenant | None) -> None:
        count, most = self._counts.get(tenant, 0) + 1, self._limits.max_workflows_per_tenant
        if most is not None and count > most:
            raise TooLargeError(
                "max_workflows_per_tenant",
                count,
                most,
                "workflows (DELETE /workflows/{workflow_id} makes room)",
            )

    def _code(self, upload: CodeUpload, name: str) -> tuple[Code, PutBlob]:
        field = "code_str" if upload.form is CodeForm.SOURCE else "code_ser"
        if not upload.data:
            raise InvalidRequestError(field, "nothing", "the code of a function or class is needed")
        most = self._limits.max_code_bytes
        if len(upload.data) > most:
            raise TooLargeError("max_code_bytes", len(upload.data), most, f"bytes of {field}")
        digest = Digest(hashlib.sha256(upload.data).hexdigest())
        is_class = upload.outline.picks_class(name)
        return Code(digest, upload.form, name, is_class), PutBlob(digest, upload.data)

    def count_new(self, workflow: Workflow) -> None:
        """Counts a workflow whose writes are about to be appended."""
        self._counts[workflow.tenant] = self._counts.get(workflow.tenant, 0) + 1

    def _put(self, workflow: Workflow, task: Task) -> PutTask:
        """What stores a task that is new or changed. Raises TooLargeError."""
        write = _put(workflow.workflow_id, task)
        kept = self._workflows[workflow.workflow_id]
        self._check_size(kept.size + len(write.document) - kept.sizes.get(task.task_id, 0))
        return write

    def _grow(self, write: PutTask) -> None:
        kept = self._workflows[write.workflow_id]
        self._size -= kept.size
        kept.take(write.task_id, len(write.document))
        self._size += kept.size
        self._make_room()

    def _keep(self, workflow: Workflow, sizes: dict[TaskId, int]) -> None:
        kept = _Kept(workflow, sizes, sum(sizes.values()))
        self._workflows[workflow.workflow_id] = kept
        self._size += kept.size
        self._make_room()

    def _make_room(self) -> None:
        while len(self._workflows) > 1 and (
            len(self._workflows) > _KEPT or self._size > _KEPT_SIZE
        ):
            self._forget(next(iter(self._workflows)))

    def _forget(self, workflow_id: WorkflowId) -> None:
        self._size -= self._workflows.pop(workflow_id).size


def _task(
    definition: Mapping[str, object], task_id: TaskId, name: str, kind: TaskKind, code: Code | None
) -> Task:
    document = {
        **definition,
        "task_id": task_id,
        "task_name": name,
        "task_type": kind.value,
        "code": code and code.document(),
    }
    task = Task.from_document(document)
    check_outputs(task)
    check_scaling(task)
    check_isolation(task)
    return task


def _put(workflow_id: WorkflowId, task: Task) -> PutTask:
    code = None if task.code is None else task.code.digest
    return PutTask(workflow_id, task.task_id, json.dumps(task.document()), code)
