"""Building a workflow and starting runs of it.

Building is local; what makes no sense is refused on the spot. A run sends the whole graph in one
request; running an unchanged workflow again sends its id only.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from lattice.api.models.schemas import SubmittedTask
from lattice.client import mermaid, pickling
from lattice.client.errors import ServiceError
from lattice.client.handles import TaskHandle
from lattice.client.inputs import Bound, bind
from lattice.client.runs import Run
from lattice.client.service import Service
from lattice.client.tasks import declaration_of
from lattice.errors import CycleError, InvalidRequestError


class Workflow:
    """Tasks and how they depend on each other. Made by `LatticeClient.create_workflow`."""

    def __init__(self, service: Service, name: str | None = None) -> None:
        self.name = name
        #: Of the workflow as last submitted; None before.
        self.workflow_id: str | None = None
        self._service = service
        self._tasks: dict[str, TaskHandle] = {}
        self._bound: dict[str, Bound] = {}
        self._edges: dict[tuple[str, str], None] = {}
        #: Ids of the tasks that come directly after each task, by edges and by outputs passed on.
        self._targets: dict[str, dict[str, None]] = {}
        self._names: set[str] = set()
        #: How often each name was asked for.
        self._counts: Counter[str] = Counter()
        #: Digest of the graph that `workflow_id` stands for.
        self._submitted: str | None = None

    @property
    def tasks(self) -> tuple[TaskHandle, ...]:
        """The tasks in the order in which they were added."""
        return tuple(self._tasks.values())

    def add_task(
        self,
        code: Callable[..., Any],
        inputs: Mapping[str, object] | None = None,
        *,
        name: str | None = None,
    ) -> TaskHandle:
        """Adds a task that runs `code`, a function or class (declared with `@task` or plain).

        Args:
            inputs: for each input a JSON value, an output of another task of this workflow
                (`other.outputs["key"]`, or `other` if it has only one), or a list with such outputs.
            name: by default that of the function, numbered where it is taken.

        Raises:
            InvalidRequestError: an input or name that makes no sense.
            TypeError: `code` cannot be a task.
        """
        declaration = declaration_of(code)
        if name is not None and name in self._names:
            raise InvalidRequestError("name", repr(name), "each task of a workflow needs its own")
        free = name or self._free_name(declaration.name)
        handle = TaskHandle(self, str(uuid.uuid4()), free, code, declaration)
        bound = bind(handle, inputs or {})
        self._names.add(free)
        self._tasks[handle.task_id] = handle
        self._bound[handle.task_id] = bound
        self._targets[handle.task_id] = {}
        for output in bound.sources:
            self._targets[output.task.task_id][handle.task_id] = None
        return handle

    def add_edge(self, source: TaskHandle, target: TaskHandle) -> None:
        """Has `target` begin only after `source` has finished. Outputs that are passed on do so anyway.

        Raises:
            CycleError: `source` comes after `target`, or is the same.
            InvalidRequestError: a task of another workflow.
        """
        for task in (source, target):
            if getattr(task, "workflow", None) is not self:
                raise InvalidRequestError("edge", repr(task), "tasks of this workflow are allowed")
        path = self._path(target, source)
        if path:
            raise CycleError("edge", [source.name, *(task.name for task in path)])
        self._edges[source.task_id, target.task_id] = None
        self._targets[source.task_id][target.task_id] = None

    def run(self, *, deadline: float | None = None) -> Run:
        """Starts a run, which fails unless it ends within `deadline` seconds from now.

        Raises:
            InvalidRequestError: there are no tasks.
            UnpicklableError: a task's code uses something that cannot be sent.
            VersionMismatchError: pickled code of this Python does not run on the service.
            ServiceError: the service refuses, in its own words.
            ConnectionFailedError, DeadlineError
        """
        if not self._tasks:
            raise InvalidRequestError("workflow", "no tasks", "add at least one with add_task")
        self._service.check_versions()
        tasks = self._documents()
        edges = list(self._edges)
        digest = _digest(tasks, edges)
        names = {task.task_id: task.name for task in self._tasks.values()}
        if self.workflow_id is not None and digest == self._submitted:
            try:
                run_id = self._service.run_workflow(self.workflow_id, deadline)
                return Run(self._service, self.workflow_id, run_id, names, self.name)
            except ServiceError as error:
                if error.status != 404:
                    raise
                # The service has lost its data, so it gets the whole workflow again.
        answer = self._service.submit_workflow(tasks, edges, deadline)
        self.workflow_id, self._submitted = answer.workflow_id, digest
        return Run(self._service, answer.workflow_id, answer.run_id, names, self.name)

    def mermaid(self) -> str:
        """The graph as the text of a Mermaid flowchart."""
        passed = [
            (output.task.task_id, task_id, output.key)
            for task_id, bound in self._bound.items()
            for output in bound.sources
        ]
        known = {(source, target) for source, target, _ in passed}
        return mermaid.flowchart(
            [(task.task_id, task.name) for task in self._tasks.values()],
            [*passed, *((*edge, None) for edge in self._edges if edge not in known)],
        )

    def _repr_markdown_(self) -> str:
        return f"```mermaid\n{self.mermaid()}```\n"

    def __repr__(self) -> str:
        names = [task.name for task in self._tasks.values()]
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        called = f" {self.name!r}" if self.name else ""
        return (
            f"<Workflow{called} of {len(names)} tasks: {shown}>" if names else f"<Workflow{called}>"
        )

    def _documents(self) -> list[SubmittedTask]:
        pickled: dict[tuple[int, str], tuple[str, bool]] = {}
        documents = []
        for task_id, task in self._tasks.items():
            bound = self._bound[task_id]
            # Many tasks often share one function, which is then pickled once.
            key = (id(task.code), repr(bound.groups))
            if key not in pickled:
                payload = task.declaration.payload(task.code, bound.groups)
                code_ser = pickling.text(pickling.dumps_code(payload))
                pickled[key] = code_ser, isinstance(payload, type)
            code_ser, is_class = pickled[key]
            documents.append(
                SubmittedTask(
                    task_id=task_id,
                    task_name=task.name,
                    code_ser=code_ser,
                    # Left out for functions: services that are older do not know it.
                    code_is_class=is_class or None,
                    task_input={
                        "input_params": {
                            str(number): parameter.document()
                            for number, parameter in enumerate(bound.parameters, 1)
                        }
                    },
                    task_output={
                        "output_params": {
                            str(number): {"key": name, "data_type": data_type}
                            for number, (name, data_type) in enumerate(
                                task.declaration.outputs.items(), 1
                            )
                        }
                    },
                    **task.declaration.needs,
                )
            )
        return documents

    def _path(self, start: TaskHandle, end: TaskHandle) -> list[TaskHandle]:
        """The tasks on a way along the edges from `start` to `end`, both included; empty if none."""
        came_from = {start.task_id: start.task_id}
        stack = [start.task_id]
        while stack:
            at = stack.pop()
            if at == end.task_id:
                path = [at]
                while path[-1] != start.task_id:
                    path.append(came_from[path[-1]])
                return [self._tasks[task_id] for task_id in reversed(path)]
            for target in self._targets[at]:
                if target not in came_from:
                    came_from[target] = at
                    stack.append(target)
        return []

    def _free_name(self, name: str) -> str:
        """`name`, or the first of name_2, name_3 and so on that is not taken."""
        while True:
            self._counts[name] += 1
            number = self._counts[name]
            free = name if number == 1 else f"{name}_{number}"
            if free not in self._names:
                return free


def _digest(tasks: list[SubmittedTask], edges: list[tuple[str, str]]) -> str:
    content = hashlib.sha256()
    for task in tasks:
        content.update(task.model_dump_json().encode())
    content.update(repr(edges).encode())
    return content.hexdigest()
