"""Starting runs: of a workflow as it is now, and again of what another run has left undone.

A run that is started again is a new one, with the graph of the first. Its log begins with the results of
the tasks that had finished, so the old log stays as it ended, and everything that reads a log (replay,
subscribers, results) needs to know nothing of this. Values are not copied out of the storage: the new run
refers to where they are, and housekeeping removes no file that a run refers to.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import quote

from lattice.errors import InvalidRequestError
from lattice.ids import Digest, RunId, TaskId
from lattice.orchestrator.recovery import load_graph, stored_messages
from lattice.orchestrator.replies import Effect
from lattice.orchestrator.runs import Runs, append_message
from lattice.ports.environment import Clock, IdSource
from lattice.ports.store import PutBlob, PutRun, RunRecord, Store, Write
from lattice.ports.tracing import Traces
from lattice.workflow import checks
from lattice.workflow.commands import Publish
from lattice.workflow.events import Result, ResultsTakenOver
from lattice.workflow.graph import Graph, Workflow
from lattice.workflow.messages import MessageType
from lattice.workflow.run import Run
from lattice.workflow.states import RunStatus
from lattice.workflow.task import Resources, Task

#: Longest deadline of a run, in seconds: a year.
_MAX_DEADLINE = 31_536_000


class Starts:
    """Makes the effects that start runs.

    `check` raises InvalidRequestError for resources that no node has; its second argument says whose.
    `deadline` is that of runs that say none, `max_deadline` the longest, in seconds. With
    `traces`, runs are in the trace of their request.
    """

    def __init__(
        self,
        store: Store,
        runs: Runs,
        clock: Clock,
        ids: IdSource,
        check: Callable[[Resources, str], None],
        deadline: float | None,
        traces: Traces | None = None,
        max_deadline: float | None = None,
    ) -> None:
        self._store = store
        self._runs = runs
        self._clock = clock
        self._ids = ids
        self._check = check
        self._deadline = deadline
        self._traces = traces
        self._max_deadline = max_deadline

    def of_workflow(
        self, workflow: Workflow, writes: Sequence[Write], deadline: float | None
    ) -> Effect:
        """Starts a run after `writes`, with `deadline` in seconds from now.

        Raises:
            InvalidRequestError: the workflow cannot run as it is, or the deadline makes no sense.
            OverloadedError, TooLargeError: there is too much under way.
        """
        seconds = self._deadline
        if deadline is not None:
            seconds = checks.number(deadline, "deadline", above=True, maximum=_MAX_DEADLINE)
        seconds = checks.within(seconds, "deadline", self._max_deadline, "max_deadline")
        graph = workflow.graph()
        self._check_nodes(graph.tasks.values())
        # Sorted, as the digest is to be that of the graph, not of the order of its keys.
        text = json.dumps(graph.document(), separators=(",", ":"), sort_keys=True).encode()
        digest = Digest(hashlib.sha256(text).hexdigest())
        codes = {task.code.digest for task in graph.tasks.values() if task.code is not None}
        created = self._clock.now()
        run = Run(RunId(self._ids.new_id()), graph, None if seconds is None else created + seconds)
        blob = PutBlob(digest, text, tuple(sorted(codes)))
        return self._effect(run, digest, created, [*writes, blob], None)

    async def again(self, record: RunRecord) -> Effect:
        """Starts a run of what the run `record` has not done, with a deadline as long, or as long as one may be.

        Raises:
            InvalidRequestError: that run has not ended, or has succeeded.
            OverloadedError, TooLargeError: there is too much under way.
        """
        if record.status in (RunStatus.RUNNING, RunStatus.SUCCEEDED):
            raise InvalidRequestError(
                "run_id",
                f"the run {record.run_id}, which "
                + ("is running" if record.status == RunStatus.RUNNING else "has succeeded"),
                "a run that failed or was cancelled is allowed",
            )
        run_id = RunId(self._ids.new_id())
        graph, results = await asyncio.to_thread(_finished, self._store, record, run_id)
        self._check_nodes(task for key, task in graph.tasks.items() if key not in results)
        created = self._clock.now()
        given = None if record.deadline is None else record.deadline - record.created
        seconds = min(
            (each for each in (given, self._max_deadline) if each is not None), default=None
        )
        run = Run(run_id, graph, None if seconds is None else created + seconds)
        taken = run.handle(ResultsTakenOver(record.run_id, created, results))
        writes = [
            append_message(run_id, command.message)
            for command in taken
            if isinstance(command, Publish)
        ]
        return self._effect(run, record.graph, created, writes, record.run_id)

    def _effect(
        self,
        run: Run,
        graph: Digest,
        created: float,
        writes: Sequence[Write],
        retry_of: RunId | None,
    ) -> Effect:
        workflow_id = run.graph.workflow_id
        trace = None if self._traces is None else self._traces.current()
        put = PutRun(
            run.run_id,
            workflow_id,
            graph,
            created,
            run.deadline,
            retry_of,
            trace,
            run.graph.tenant,
        )
        self._runs.reserve(run)
        return Effect(
            {"workflow_id": workflow_id, "run_id": run.run_id},
            [*writes, put],
            lambda: self._runs.begin(run, created, trace),
        )

    def _check_nodes(self, tasks: Iterable[Task]) -> None:
        checked: set[Resources] = set()
        for task in tasks:
            if task.resources not in checked:
                self._check(task.resources, f"task {task.name!r}")
                checked.add(task.resources)


def _finished(store: Store, record: RunRecord, new_id: RunId) -> tuple[Graph, dict[TaskId, Result]]:
    """The graph of a run, and the results of its finished tasks as the run `new_id` tells them. Blocks."""
    graph = load_graph(store, record.graph)
    values = store.load_values(record.run_id)
    results: dict[TaskId, Result] = {}
    for text in stored_messages(store, record.run_id):
        message = json.loads(text)
        if message["type"] == MessageType.FINISH_TASK:
            data = message["data"]
            task_id = TaskId(data["task_id"])
            result = _moved(data["result"], task_id, record.run_id, new_id)
            results[task_id] = Result(result, values.get(task_id, {}))
    return graph, results


def _moved(
    result: Mapping[str, object], task_id: TaskId, old: RunId, new: RunId
) -> dict[str, object]:
    """`result` with the addresses in its descriptions those of the run `new`."""
    task = quote(task_id, safe="", errors="surrogatepass")
    before, after = (f"/runs/{quote(run, safe='')}/tasks/{task}/result/" for run in (old, new))

    def moved(value: object) -> object:
        url = value.get("url") if isinstance(value, dict) else None
        if isinstance(value, dict) and isinstance(url, str) and url.startswith(before):
            return value | {"url": after + url[len(before) :]}
        return value

    return {key: moved(value) for key, value in result.items()}
