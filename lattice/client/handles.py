"""What stands for a task and its outputs while a workflow is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lattice.client.suggestions import did_you_mean
from lattice.client.tasks import Declaration
from lattice.errors import InvalidRequestError

if TYPE_CHECKING:
    from lattice.client.workflow import Workflow


class Output:
    """One output of a task, to be given to another task as an input."""

    def __init__(self, task: TaskHandle, key: str) -> None:
        self.task = task
        self.key = key

    def __repr__(self) -> str:
        return f"<Output {self.task.name}.{self.key}>"


class Outputs:
    """The outputs of a task by name. A name that it does not have raises InvalidRequestError."""

    def __init__(self, task: TaskHandle) -> None:
        self._task = task

    def __getitem__(self, key: str) -> Output:
        declared = self._task.declaration.outputs
        if key not in declared:
            raise InvalidRequestError(
                f"outputs of {self._task.name!r}", repr(key), did_you_mean(str(key), declared)
            )
        return Output(self._task, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._task.declaration.outputs)

    def __len__(self) -> int:
        return len(self._task.declaration.outputs)

    def __repr__(self) -> str:
        return f"<Outputs of {self._task.name}: {', '.join(self)}>"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)


class TaskHandle:
    """A task of a workflow. `name` is unique in the workflow."""

    def __init__(
        self, workflow: Workflow, task_id: str, name: str, code: Any, declaration: Declaration
    ) -> None:
        self.workflow = workflow
        self.task_id = task_id
        self.name = name
        self.code = code
        self.declaration = declaration
        self.outputs = Outputs(self)

    @property
    def output(self) -> Output:
        """The only output. Raises InvalidRequestError where there are several."""
        keys = list(self.outputs)
        if len(keys) != 1:
            raise InvalidRequestError(
                f"the task {self.name!r}",
                f"{len(keys)} outputs",
                f"say which: outputs[key], where key is one of {', '.join(keys) or '(none)'}",
            )
        return self.outputs[keys[0]]

    def __repr__(self) -> str:
        inputs = ", ".join(self.declaration.inputs)
        return f"<TaskHandle {self.name}({inputs}) -> {', '.join(self.outputs)}>"
