"""What the benchmarks share: an engine of their own, tasks on a dispatcher, rounds, and a table of figures.

The machine is never quiet. So what is measured and its floor take turns, each ratio is of one round, and
what is shown are medians, with the lowest and the highest.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import ray
from ray import serve

from deployments.replicas.dispatcher import CANCEL_GRACE, ReplicaDispatcher
from deployments.replicas.fleet import Fleet
from deployments.replicas.identity import Bounds
from deployments.routing import RoutingDispatcher
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ids import Digest, RunId, TaskId
from lattice.ports.execution import Argument, Definition, Job, Report
from lattice.workflow.events import TaskStarted, TaskSucceeded
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Code, CodeForm, Resources

#: Of how many runs the jobs are.
_RUNS = 50

# -- figures -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table: one value a round, and what its median is meant to reach."""

    name: str
    values: Sequence[float]
    digits: int = 2
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> float | None:
        """What the median is meant to reach, if there is such a thing."""
        return self.at_most if self.at_least is None else self.at_least

    @property
    def reached(self) -> bool:
        """Whether the median is on the right side of its target; true if it has none."""
        median = statistics.median(self.values)
        low = self.at_least is None or median >= self.at_least
        return low and (self.at_most is None or median <= self.at_most)

    @property
    def label(self) -> str:
        """The name by itself."""
        return self.name.strip()

    def cells(self) -> list[str]:
        """Median, lowest, highest, target, and whether that is reached."""
        numbers = (statistics.median(self.values), min(self.values), max(self.values))
        shown = [f"{number:,.{self.digits}f}" for number in numbers]
        if self.target is None:
            return [*shown, "", ""]
        sign = "<=" if self.at_least is None else ">="
        return [*shown, f"{sign} {self.target:g}", "reached" if self.reached else "MISSED"]

    def line(self) -> str:
        """The line as text."""
        median, lowest, highest, target, word = self.cells()
        return f"{self.name:<44}{median:>11}{lowest:>11}{highest:>11}  {target} {word}".rstrip()

    def row(self) -> str:
        """The line in Markdown."""
        return f"| {' | '.join([self.label, *self.cells()])} |"


def ratios(values: Sequence[float], floors: Sequence[float]) -> list[float]:
    """What each round's value is of its floor."""
    return [value / floor for value, floor in zip(values, floors, strict=True)]


def show(figures: Sequence[Figure]) -> None:
    """Prints the table."""
    print(f"{'':<44}{'median':>11}{'lowest':>11}{'highest':>11}  target")
    for figure in figures:
        print(figure.line())


# -- calls -------------------------------------------------------------------------------------


async def rate(call: Callable[[int], Awaitable[object]], number: int, in_flight: int) -> float:
    """Calls per second, with `in_flight` of them at a time."""
    numbers = iter(range(number))

    async def caller() -> None:
        for x in numbers:
            await call(x)

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return number / (time.perf_counter() - begun)


@contextmanager
def engine(cpus: int = 2) -> Iterator[str]:
    """A Ray with Serve of its own; gives a folder. Needs no port that others could have."""
    # Short, as Ray puts sockets below it, whose paths may have at most 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled")
        try:
            yield folder
        finally:
            serve.shutdown()
            ray.shutdown()


class CalledTask:
    """A task that is called through the dispatcher, as a run does it.

    Attributes:
        sizes: of the batch that each call was in.
        replicas: those that calls have run on.
    """

    def __init__(self, tasks: Tasks, definition: Definition) -> None:
        self.definition = definition
        self.sizes: list[int] = []
        self.replicas: set[str] = set()
        self._tasks = tasks

    async def __call__(self, x: int) -> None:
        """One call, to its end."""
        end = await self._tasks.run(self.definition, x)
        self.sizes.append(end.placement.batch_size or 1)
        self.replicas.add(str(end.placement.replica))


class Tasks:
    """Tasks on the dispatcher that the service has; all go to replicas."""

    def __init__(self, folder: str) -> None:
        url = f"file://{folder}"
        self.fleet = Fleet(
            url,
            scope=folder,
            owner=None,
            bounds=Bounds(1, 300.0),
            max_applications=100,
            idle_seconds=300.0,
            grace=CANCEL_GRACE,
        )
        tasks = RayTaskDispatcher(url, 65536)
        replicas = ReplicaDispatcher(self.fleet, url, 65536, held=tasks.held)
        self._dispatcher = RoutingDispatcher(tasks, replicas, everything=True)
        self._sources: dict[Digest, bytes] = {}
        self._waiting: dict[TaskId, asyncio.Future[TaskSucceeded]] = {}
        self._calls = 0

    def task(
        self, source: str, batch: BatchPolicy | None = None, scaling: Scaling | None = None
    ) -> CalledTask:
        """The task `run` of source code: by default not batched, on one replica."""
        data = source.encode()
        digest = Digest(hashlib.sha256(data).hexdigest())
        self._sources[digest] = data
        definition = Definition(
            code=Code(digest, CodeForm.SOURCE, "run"),
            resources=Resources(cpu=0.1),
            gpus=0.0,
            batch=batch or BatchPolicy(),
            scaling=scaling or Scaling(max_replicas=1),
            runtime_env={},
            excluded=frozenset(),
        )
        return CalledTask(self, definition)

    async def run(self, definition: Definition, x: int) -> TaskSucceeded:
        """How a job with the input `x` ends."""
        self._calls += 1
        task_id = TaskId(f"t{self._calls}")
        done = self._waiting[task_id] = asyncio.get_running_loop().create_future()
        self._dispatcher.submit(
            Job(
                run_id=RunId(f"r{x % _RUNS}"),
                task_id=task_id,
                attempt=1,
                name="run",
                definition=definition,
                arguments=(Argument("x", str(x)),),
                output_keys=("y",),
                timed=False,
            )
        )
        end: TaskSucceeded = await done
        return end

    def _report(self, _: RunId, report: Report) -> None:
        if isinstance(report, TaskStarted):
            return
        assert isinstance(report, TaskSucceeded), report
        self._waiting.pop(report.task_id).set_result(report)

    async def _source(self, digest: Digest) -> bytes:
        return self._sources[digest]

    async def start(self) -> None:
        """Starts the dispatcher."""
        await self._dispatcher.start(self._report, self._source, lambda *_: ())

    async def close(self) -> None:
        """Ends it, and its replicas."""
        await self._dispatcher.close()


@asynccontextmanager
async def tasks_on(folder: str) -> AsyncIterator[Tasks]:
    """A dispatcher on the engine that runs, with `folder` as its storage."""
    tasks = Tasks(folder)
    await tasks.start()
    try:
        yield tasks
    finally:
        await tasks.close()
