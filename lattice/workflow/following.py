"""What of a run becomes ready when tasks succeed: looked up ahead of time, by Kahn's algorithm from where the run is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from lattice.ids import TaskId
from lattice.workflow.run import Run
from lattice.workflow.states import TaskState


def following(run: Run, task_ids: Sequence[TaskId]) -> Iterator[tuple[TaskId, tuple[TaskId, ...]]]:
    """What becomes ready once `task_ids` and then those here have succeeded, in a topological order.

    Each comes with the tasks upstream that have not succeeded yet. Costs a step for each edge that is passed.
    """
    #: How many tasks upstream of each are not expected to succeed.
    missing: dict[TaskId, int] = {}
    # Whoever has succeeded by now is missing no more.
    sources = deque(each for each in task_ids if run.tasks[each].state is not TaskState.SUCCEEDED)
    while sources:
        for task_id in run.graph.downstream[sources.popleft()]:
            progress = run.tasks[task_id]
            if progress.state is not TaskState.WAITING:
                continue
            missing[task_id] = missing.get(task_id, progress.missing) - 1
            if missing[task_id] == 0:
                sources.append(task_id)
                upstream = run.graph.upstream[task_id]
                unfinished = (
                    each for each in upstream if run.tasks[each].state is not TaskState.SUCCEEDED
                )
                yield task_id, tuple(unfinished)
