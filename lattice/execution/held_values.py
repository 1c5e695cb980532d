"""Large outputs in the object store, by the references that keep them there.

A task that wants one is given the reference, so that the value moves from process to process. A value that
is lost, as the process that owned it is gone, is read from the storage, where it is too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from lattice.ids import RunId, TaskId
from lattice.ports.execution import Argument

Reference = TypeVar("Reference")


class HeldValues(Generic[Reference]):
    """References by run and task; each stands for all large outputs of its task."""

    def __init__(self) -> None:
        self._held: dict[tuple[RunId, TaskId], Reference] = {}

    def keep(self, run_id: RunId, task_id: TaskId, reference: Reference) -> None:
        """Holds the large outputs of a task."""
        self._held[run_id, task_id] = reference

    def drop(self, run_id: RunId, task_id: TaskId) -> None:
        """Lets go of them."""
        self._held.pop((run_id, task_id), None)

    def clear(self) -> None:
        """Lets go of all."""
        self._held.clear()

    def upstream(
        self,
        run_id: RunId,
        arguments: Iterable[Argument],
        references: dict[TaskId, tuple[int, Reference]],
    ) -> tuple[int | None, ...]:
        """What an attempt is given along with its arguments.

        Args:
            references: with their positions, by the tasks they are of, for all attempts of a call; what this one
                needs is added.

        Returns:
            For each argument the position of its own among `references`: None where it comes by another way.
        """
        positions: list[int | None] = []
        for argument in arguments:
            position = None
            if argument.source and argument.value and argument.value.location is not None:
                source = argument.source[0]
                reference = self._held.get((run_id, source))
                if reference is not None:
                    position, _ = references.setdefault(source, (len(references), reference))
            positions.append(position)
        return tuple(positions)
