"""A workflow that is being edited, and the immutable graph that a run works on.

The order of a run is the explicit edges together with every reference from one task to another, so
deleting an edge that a reference implies changes nothing in the order. Both are kept free of cycles
at every edit: an edge or reference that would close one is refused and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lattice.errors import (
    CycleError,
    EdgeNotFoundError,
    InvalidRequestError,
    TaskNotFoundError,
)
from lattice.ids import TaskId, Tenant, WorkflowId
from lattice.workflow import checks
from lattice.workflow.task import Task, TaskKind


@dataclass(frozen=True, slots=True)
class Upstream:
    """An output of another task as an input's source."""

    task_id: TaskId
    key: str


@dataclass(frozen=True, slots=True)
class Binding:
    """An input of a task in a run: a JSON `value`, or the `upstream` output that it comes from."""

    key: str
    value: object
    upstream: Upstream | None


@dataclass(frozen=True, slots=True)
class Graph:
    """What a run works on: its tasks in topological order, and who waits for whom.

    `tenant` is whose workflow it is; None where there are no API keys.
    """

    workflow_id: WorkflowId
    tasks: Mapping[TaskId, Task]
    upstream: Mapping[TaskId, tuple[TaskId, ...]]
    downstream: Mapping[TaskId, tuple[TaskId, ...]]
    tenant: Tenant | None = None

    @classmethod
    def build(
        cls,
        workflow_id: WorkflowId,
        tasks: Iterable[Task],
        edges: Iterable[tuple[TaskId, TaskId]],
        tenant: Tenant | None = None,
    ) -> Graph:
        """The graph of `tasks` under `edges`, which include those that references imply.

        Raises:
            CycleError: the edges close a cycle.
        """
        by_id = {task.task_id: task for task in tasks}
        upstream: dict[TaskId, list[TaskId]] = {task_id: [] for task_id in by_id}
        downstream: dict[TaskId, list[TaskId]] = {task_id: [] for task_id in by_id}
        for source, target in dict.fromkeys(edges):
            upstream[target].append(source)
            downstream[source].append(target)
        order = _topological(upstream, downstream)
        # Neighbours in topological order: the same graph is the same value however it was put together.
        place = {task_id: number for number, task_id in enumerate(order)}
        return cls(
            workflow_id,
            {task_id: by_id[task_id] for task_id in order},
            {task_id: tuple(sorted(upstream[task_id], key=place.__getitem__)) for task_id in order},
            {
                task_id: tuple(sorted(downstream[task_id], key=place.__getitem__))
                for task_id in order
            },
            tenant,
        )

    def bindings(self, task_id: TaskId) -> tuple[Binding, ...]:
        """Where each input of a task comes from. References were checked when the graph was made."""
        bindings = []
        for item in self.tasks[task_id].inputs:
            if item.source is None:
                bindings.append(Binding(item.key, item.value, None))
                continue
            key = item.source.key(self.tasks[item.source.task_id].output_keys)
            assert key is not None, "a run was started on an unchecked reference"
            bindings.append(Binding(item.key, None, Upstream(item.source.task_id, key)))
        return tuple(bindings)

    def document(self) -> dict[str, object]:
        """A JSON document from which `from_document` makes the same graph."""
        owner = {} if self.tenant is None else {"tenant": self.tenant}
        return owner | {
            "workflow_id": self.workflow_id,
            "tasks": [task.document() for task in self.tasks.values()],
            "edges": [
                [source, target] for target, sources in self.upstream.items() for source in sources
            ],
        }

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Graph:
        """The graph that `document` describes."""
        tasks = document["tasks"]
        edges = document["edges"]
        assert isinstance(tasks, list)
        assert isinstance(edges, list)
        tenant = document.get("tenant")
        return cls.build(
            WorkflowId(str(document["workflow_id"])),
            [Task.from_document(task) for task in tasks],
            [(TaskId(source), TaskId(target)) for source, target in edges],
            None if tenant is None else Tenant(str(tenant)),
        )


def _topological(
    upstream: Mapping[TaskId, Sequence[TaskId]], downstream: Mapping[TaskId, Sequence[TaskId]]
) -> list[TaskId]:
    """Kahn's algorithm (A. B. Kahn, Communications of the ACM 5(11), 1962)."""
    missing = {task_id: len(sources) for task_id, sources in upstream.items()}
    order = [task_id for task_id, count in missing.items() if count == 0]
    for task_id in order:
        for target in downstream[task_id]:
            missing[target] -= 1
            if missing[target] == 0:
                order.append(target)
    if len(order) < len(upstream):
        left = next(task_id for task_id, count in missing.items() if count)
        raise CycleError("edges", _cycle_through(left, upstream, missing))
    return order


def _cycle_through(
    start: TaskId, upstream: Mapping[TaskId, Sequence[TaskId]], missing: Mapping[TaskId, int]
) -> list[TaskId]:
    """A cycle among the tasks that Kahn's algorithm left, found by walking upstream from `start`."""
    seen: dict[TaskId, int] = {}
    walk: list[TaskId] = []
    at = start
    while at not in seen:
        seen[at] = len(walk)
        walk.append(at)
        at = next(source for source in upstream[at] if missing[source])
    return [*walk[seen[at] :], at][::-1]


class Workflow:
    """A workflow that is being edited. Every refused edit leaves it as it was.

    `tenant` is whose it is, from its making on; None where there are no API keys.
    """

    def __init__(
        self,
        workflow_id: WorkflowId,
        tasks: Iterable[Task] = (),
        edges: Iterable[tuple[TaskId, TaskId]] = (),
        tenant: Tenant | None = None,
    ) -> None:
        self.workflow_id = workflow_id
        self.tenant = tenant
        #: How many pairs of tasks have an edge, explicit or implied.
        self.edge_count = 0
        self._tasks: dict[TaskId, Task] = {task.task_id: task for task in tasks}
        #: Explicit edges only, in the order in which they were added.
        self._edges: dict[tuple[TaskId, TaskId], None] = dict.fromkeys(edges)
        #: Targets of all edges, explicit and implied, by source.
        self._targets: dict[TaskId, dict[TaskId, int]] = {}
        for source, target in self._edges:
            self._link(source, target)
        for task in self._tasks.values():
            for source in _referenced(task):
                self._link(source, task.task_id)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in the order in which they were added."""
        return tuple(self._tasks.values())

    @property
    def edges(self) -> tuple[tuple[TaskId, TaskId], ...]:
        """The explicit edges, as (source, target)."""
        return tuple(self._edges)

    def has_edge(self, source: TaskId, target: TaskId) -> bool:
        """Whether there is an edge, explicit or implied."""
        return target in self._targets.get(source, ())

    def edge_count_with(self, task: Task) -> int:
        """How many edges there would be with `task` in the place of the one of its id."""
        count, target = self.edge_count, task.task_id
        new = _referenced(task)
        for source in _referenced(self.task(target)):
            only_reference = self._targets[source][target] == 1
            count -= only_reference and source not in new
        return count + sum(not self.has_edge(source, target) for source in new)

    def task(self, task_id: TaskId) -> Task:
        """Raises TaskNotFoundError."""
        if task_id not in self._tasks:
            raise TaskNotFoundError(task_id, self.workflow_id)
        return self._tasks[task_id]

    def add_task(self, task: Task) -> None:
        """Adds a task under a new id; its inputs come with `save_task`.

        Raises:
            InvalidRequestError: the id is taken.
        """
        assert not task.inputs, "inputs are checked by save_task"
        if task.task_id in self._tasks:
            raise InvalidRequestError(
                "task_id", f"{task.task_id!r} twice", "each task needs an id of its own"
            )
        self._tasks[task.task_id] = task

    def save_task(self, task: Task, *, add_edges: bool) -> tuple[tuple[TaskId, TaskId], ...]:
        """Replaces the task of the same id; with `add_edges`, makes its references explicit edges.

        Returns the explicit edges that were added.

        Raises:
            TaskNotFoundError: the workflow has no such task.
            InvalidRequestError: a reference to a task or an output that does not exist.
            CycleError: a reference closes a cycle.
        """
        old = self.task(task.task_id)
        sources = _referenced(task)
        for item in task.inputs:
            if item.source is not None:
                self._check_reference(task, item.key, item.source.task_id)
        for source in _referenced(old):
            self._unlink(source, old.task_id)
        for source in sources:
            cycle = self._path(task.task_id, source)
            if cycle:
                for former in _referenced(old):
                    self._link(former, old.task_id)
                raise CycleError("task_input", [source, *cycle])
        for source in sources:
            self._link(source, task.task_id)
        self._tasks[task.task_id] = task
        added = []
        if add_edges:
            for source in sources:
                if (source, task.task_id) not in self._edges:
                    self._edges[source, task.task_id] = None
                    self._link(source, task.task_id)
                    added.append((source, task.task_id))
        return tuple(added)

    def add_edge(self, source: TaskId, target: TaskId) -> bool:
        """Adds an explicit edge; False if it was there.

        Raises:
            TaskNotFoundError: the workflow has no such task.
            InvalidRequestError: an end of the edge is not a task of kind `code`.
            CycleError: the edge would close a cycle.
        """
        for task_id in (source, target):
            if self.task(task_id).kind is not TaskKind.CODE:
                raise InvalidRequestError(
                    "edge",
                    f"the {self.task(task_id).kind.value} task {task_id}",
                    "edges join tasks of type 'code'; other tasks are called by themselves",
                )
        if (source, target) in self._edges:
            return False
        cycle = self._path(target, source)
        if cycle:
            raise CycleError("edge", [source, *cycle])
        self._edges[source, target] = None
        self._link(source, target)
        return True

    def add_edges(self, edges: Iterable[tuple[TaskId, TaskId]]) -> None:
        """Adds explicit edges to a workflow that is not shared yet; `graph` finds cycles.

        Raises:
            TaskNotFoundError: the workflow has no such task.
        """
        for source, target in edges:
            self.task(source)
            self.task(target)
            if (source, target) not in self._edges:
                self._edges[source, target] = None
                self._link(source, target)

    def del_edge(self, source: TaskId, target: TaskId) -> bool:
        """Removes an explicit edge; False if only a reference implies the edge, which then stays.

        Raises:
            TaskNotFoundError: the workflow has no such task.
            EdgeNotFoundError: there is no such edge.
        """
        self.task(source)
        self.task(target)
        if (source, target) in self._edges:
            del self._edges[source, target]
            self._unlink(source, target)
            return True
        if target in self._targets.get(source, ()):
            return False
        raise EdgeNotFoundError(source, target, self.workflow_id)

    def del_task(self, task_id: TaskId) -> None:
        """Removes a task and its explicit edges. Raises TaskNotFoundError."""
        task = self.task(task_id)
        for source in _referenced(task):
            self._unlink(source, task_id)
        for edge in [edge for edge in self._edges if task_id in edge]:
            del self._edges[edge]
            self._unlink(*edge)
        del self._tasks[task_id]

    def graph(self) -> Graph:
        """The graph that a run of this workflow, as it is now, works on.

        Raises:
            InvalidRequestError: no task to run, a task without code, a reference to a task or an
                output key that does not exist.
        """
        tasks = [task for task in self._tasks.values() if task.kind is TaskKind.CODE]
        if not tasks:
            raise InvalidRequestError(
                "workflow_id",
                f"workflow {self.workflow_id} without a task to run",
                "add a task of type 'code' and save it first",
            )
        for task in tasks:
            if task.code is None:
                raise InvalidRequestError(
                    "workflow_id",
                    f"task {task.name!r} ({task.task_id}) without code",
                    "save it with code_str or code_ser first",
                )
        for task in tasks:
            for item in task.inputs:
                if item.source is not None:
                    self._check_reference(task, item.key, item.source.task_id, complete=True)
        edges = [
            (source, target) for source, targets in self._targets.items() for target in targets
        ]
        return Graph.build(self.workflow_id, tasks, edges, self.tenant)

    def _check_reference(
        self, task: Task, key: str, source_id: TaskId, *, complete: bool = False
    ) -> None:
        """Checks one input's reference; outputs of a task without code are unknown until `complete`."""
        source = self._tasks.get(source_id)
        where = f"task_input of {task.name!r}, parameter {key!r}"
        reference = next(item.source for item in task.inputs if item.key == key)
        assert reference is not None
        if source is None or source.kind is not TaskKind.CODE:
            raise InvalidRequestError(
                where,
                f"a reference to task {checks.shown(source_id)}",
                f"a task of type 'code' in workflow {self.workflow_id} is allowed",
            )
        if (source.code is not None or complete) and reference.key(source.output_keys) is None:
            declared = ", ".join(source.output_keys) or "nothing"
            raise InvalidRequestError(
                where,
                f"a reference to output {reference.path!r} of task {source.name!r}",
                f"that task declares {declared}",
            )

    def _link(self, source: TaskId, target: TaskId) -> None:
        targets = self._targets.setdefault(source, {})
        self.edge_count += target not in targets
        targets[target] = targets.get(target, 0) + 1

    def _unlink(self, source: TaskId, target: TaskId) -> None:
        targets = self._targets[source]
        targets[target] -= 1
        if not targets[target]:
            del targets[target]
            self.edge_count -= 1

    def _path(self, start: TaskId, end: TaskId) -> list[TaskId]:
        """The tasks on a path along the edges from `start` to `end`, both included; empty if none."""
        came_from: dict[TaskId, TaskId | None] = {start: None}
        stack = [start]
        while stack:
            at = stack.pop()
            if at == end:
                path: list[TaskId] = []
                step: TaskId | None = at
                while step is not None:
                    path.append(step)
                    step = came_from[step]
                return path[::-1]
            for target in self._targets.get(at, ()):
                if target not in came_from:
                    came_from[target] = at
                    stack.append(target)
        return []


def _referenced(task: Task) -> tuple[TaskId, ...]:
    """The tasks that a task's inputs refer to, each once."""
    return tuple(dict.fromkeys(item.source.task_id for item in task.inputs if item.source))
