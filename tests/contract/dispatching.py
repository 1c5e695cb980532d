"""What the suites of dispatchers share: jobs made from functions, and a record of what is reported."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle

from lattice.errors import StoreUnavailableError
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ids import Digest, RunId, TaskId
from lattice.ports.execution import (
    Argument,
    Call,
    Definition,
    Dispatcher,
    Job,
    LogEntry,
    Report,
    TaskLogged,
)
from lattice.workflow.events import TaskFailed, TaskLost, TaskStarted, TaskSucceeded, Value
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Code, CodeForm, Resources

#: Longest wait, in seconds, for something that does happen.
LONG = 240.0
#: Most tasks of a shape that Ray has at a time.
IN_FLIGHT = 100

End = TaskSucceeded | TaskFailed | TaskLost


@contextmanager
def short_folder() -> Iterator[str]:
    """A folder for an engine's sockets, whose paths may have about 100 characters."""
    base = "/tmp" if os.path.isdir("/tmp") else None
    with tempfile.TemporaryDirectory(prefix="lt", dir=base, ignore_cleanup_errors=True) as folder:
        yield folder


def new_tasks(storage_url: str) -> RayTaskDispatcher:
    """A dispatcher of Ray tasks."""
    return RayTaskDispatcher(
        storage_url,
        inline_value_bytes=1024,
        max_result_bytes=100_000,
        max_in_flight=IN_FLIGHT,
        cancel_grace=0.5,
    )


def event_loop_tasks() -> set[asyncio.Task[Any]]:
    """The tasks of the loop but those with which anyio's plugin drives the test."""
    return {
        task
        for task in asyncio.all_tasks()
        if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
    }


class Bench:
    """A dispatcher at work: takes functions, and waits for what is reported of them."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.reports: dict[tuple[RunId, TaskId], list[Report]] = defaultdict(list)
        self.order: list[tuple[RunId, TaskId]] = []
        self.loads: list[Digest] = []
        self._codes: dict[Digest, bytes] = {}
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Starts the dispatcher."""
        await self.dispatcher.start(self._report, self._load_code, lambda *_: ())

    async def _load_code(self, digest: Digest) -> bytes:
        self.loads.append(digest)
        if digest not in self._codes:
            raise StoreUnavailableError("no such code")
        return self._codes[digest]

    def _report(self, run_id: RunId, report: Report) -> None:
        self.reports[run_id, report.task_id].append(report)
        if isinstance(report, End):
            self.order.append((run_id, report.task_id))
        self._changed.set()

    def code(self, function: object) -> Code:
        """`function` as pickled code; a `str` is source."""
        source = isinstance(function, str)
        data = function.encode() if isinstance(function, str) else cloudpickle.dumps(function)
        digest = Digest(hashlib.sha256(data).hexdigest())
        self._codes[digest] = data
        is_class = isinstance(function, type) or (source and "\nclass " in data.decode())
        return Code(digest, CodeForm.SOURCE if source else CodeForm.PICKLE, "run", is_class)

    def job(
        self,
        function: object,
        task: str = "t",
        arguments: tuple[Argument, ...] = (),
        *,
        run: str = "r",
        attempt: int = 1,
        outputs: tuple[str, ...] = (),
        **changes: Any,
    ) -> Job:
        """A job of one CPU that runs `function`."""
        timed = changes.pop("timed", False)
        return Job(
            run_id=RunId(run),
            task_id=TaskId(task),
            attempt=attempt,
            name="run",
            definition=self.definition(function, **changes),
            arguments=arguments,
            output_keys=outputs,
            timed=timed,
        )

    def definition(self, function: object, **changes: Any) -> Definition:
        """A definition of one CPU that runs `function`."""
        defaults: dict[str, Any] = {
            "code": self.code(function),
            "resources": Resources(),
            "gpus": 0.0,
            "batch": BatchPolicy(),
            "scaling": Scaling(),
            "runtime_env": {},
            "excluded": frozenset(),
        }
        return Definition(**(defaults | changes))

    def call(
        self, function: object, *args: object, secrets: tuple[str, ...] = (), **kwargs: object
    ) -> Call:
        """A call of `function` by itself."""
        definition = self.definition(function, secrets=secrets)
        return Call("run", definition, cloudpickle.dumps(args), cloudpickle.dumps(kwargs))

    async def waiting(self, *jobs: Job) -> dict[TaskId, str]:
        """What the attempts of jobs of one run wait for, by their tasks."""
        attempts = {job.task_id: job.attempt for job in jobs}
        return dict(await self.dispatcher.waiting(jobs[0].run_id, attempts))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until `condition` holds, which is looked at after every report."""
        async with asyncio.timeout(LONG):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def started(self, job: Job) -> TaskStarted:
        """Waits for the report that `job` has begun."""
        reports = self.reports[job.run_id, job.task_id]
        await self.until(lambda: any(isinstance(each, TaskStarted) for each in reports))
        return next(each for each in reports if isinstance(each, TaskStarted))

    def ends(self, job: Job) -> list[End]:
        """What has been reported of the end of `job`'s task."""
        reports = self.reports[job.run_id, job.task_id]
        return [each for each in reports if isinstance(each, End)]

    def logs(self, job: Job) -> list[TaskLogged]:
        """What has been reported of what `job`'s task prints."""
        reports = self.reports[job.run_id, job.task_id]
        return [each for each in reports if isinstance(each, TaskLogged)]

    async def printed(self, job: Job) -> tuple[LogEntry, ...]:
        """What a job that has ended has printed, as its end tells."""
        await self.end(job)
        (final,) = (each for each in self.logs(job) if each.final)
        return final.entries

    async def end(self, job: Job) -> End:
        """Waits for the end of `job`, which must be the only one of its task."""
        await self.until(lambda: bool(self.ends(job)))
        (end,) = self.ends(job)
        assert (end.task_id, end.attempt) == (job.task_id, job.attempt)
        return end

    async def run(self, function: object, *args: Any, **changes: Any) -> End:
        """Submits a job and waits for its end."""
        job = self.job(function, *args, **changes)
        self.dispatcher.submit(job)
        return await self.end(job)

    async def succeed(self, function: object, *args: Any, **changes: Any) -> TaskSucceeded:
        """Submits a job that must succeed."""
        end = await self.run(function, *args, **changes)
        assert isinstance(end, TaskSucceeded), end
        return end

    async def fail(self, function: object, *args: Any, **changes: Any) -> TaskFailed:
        """Submits a job that must fail."""
        end = await self.run(function, *args, **changes)
        assert isinstance(end, TaskFailed), end
        return end


def given(key: str, value: object) -> Argument:
    """An argument that the user gave."""
    return Argument(key, json.dumps(value))


def output_of(task: str, key: str, value: Value) -> Argument:
    """The output `key` of another task, as the argument of the same name."""
    return Argument(key, None, (TaskId(task), key), value)
