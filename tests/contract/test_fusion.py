"""Short attempts of a run that share one call of a worker, against a real engine: each keeps its own fate.

Whether attempts shared a call is told by the id of the Ray task that they ran in.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ids import RunId, TaskId
from lattice.ports.execution import Argument, Job, Report
from lattice.workflow.events import TaskFailed, TaskLost, TaskStarted, TaskSucceeded, Value
from tests.contract.dispatching import LONG, Bench, End, given

pytestmark = pytest.mark.anyio

Params = dict[str, Any]


def where(params: Params) -> Params:
    """Tells in which Ray task it runs, after what `params` ask for."""
    import os
    import time

    import ray

    print(
        f"in {params.get('x')}\n", end=""
    )  # in one piece, as what was written is told at any moment
    if params.get("fail"):
        raise ValueError(params["fail"])
    until = params.get("until")
    while until and not os.path.exists(until):
        time.sleep(0.01)
    if params.get("die"):
        os._exit(1)
    if params.get("mark"):
        with open(params["mark"], "a") as file:
            file.write(f"{params['x']}\n")
    large = "y" * params.get("large", 0)
    call = str(ray.get_runtime_context().get_task_id())
    return {"x": params["x"], "call": call, "large": large}


OUTPUTS = ("x", "call", "large")


class ShortTasks(Bench):
    """A bench whose jobs are known to be short, and some of which follow others.

    A job of `following` is submitted when all that it comes after has succeeded, as the orchestrator does it.
    """

    def __init__(self, dispatcher: RayTaskDispatcher) -> None:
        super().__init__(dispatcher)
        self.following: list[Job] = []
        self.values: dict[TaskId, dict[str, Value]] = {}
        dispatcher._durations.observe(self.code(where), 1e-4)

    async def start(self) -> None:
        """Starts the dispatcher, and sees to it that it has the code."""
        await self.dispatcher.start(self._report, self._load_code, self._ahead)
        await self.succeed(where, "first", (given("x", 0),), run="other", outputs=OUTPUTS)
        self.dispatcher._durations._seconds.clear()  # type: ignore[attr-defined]
        self.dispatcher._durations.observe(self.code(where), 1e-4)  # type: ignore[attr-defined]

    async def until_idle(self) -> None:
        """Waits until the engine has nothing of it."""
        deadline = time.monotonic() + LONG
        while self.dispatcher.load().engaged or self.dispatcher._in_flight:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    def remember_nothing(self) -> None:
        """From now on, jobs count as short however long they take."""
        self.dispatcher._durations.observe = lambda *_: None  # type: ignore[attr-defined]

    def _ahead(self, run_id: RunId, task_ids: Sequence[TaskId]) -> list[Job]:
        expected = set(task_ids)
        found = []
        for job in self.following:
            missing = tuple(each for each in job.after if each not in self.values)
            if expected.issuperset(missing) and job.task_id not in expected:
                expected.add(job.task_id)
                found.append(replace(job, after=missing))
        return found

    def _report(self, run_id: RunId, report: Report) -> None:
        super()._report(run_id, report)
        if not isinstance(report, TaskSucceeded):
            return
        self.values[report.task_id] = dict(report.values)
        for job in self.following:
            if report.task_id in job.after and self.values.keys() >= set(job.after):
                arguments = tuple(self._filled(argument) for argument in job.arguments)
                self.dispatcher.submit(replace(job, arguments=arguments, after=()))

    def _filled(self, argument: Argument) -> Argument:
        if argument.source is None:
            return argument
        task_id, key = argument.source
        return replace(argument, value=self.values[task_id][key])

    def short(self, task: str, x: object = None, after: str = "", **asked: object) -> Job:
        """A job that hands on `x`, or the output of the one that it comes `after`."""
        arguments = [given(key, value) for key, value in asked.items()]
        if after:
            arguments.append(Argument("x", None, (TaskId(after), "x")))
        else:
            arguments.append(given("x", x))
        job = self.job(where, task, tuple(arguments), outputs=OUTPUTS)
        return replace(job, after=(TaskId(after),) if after else ())

    def chain(self, length: int, prefix: str = "t") -> list[Job]:
        """Jobs of which each follows the one before; all but the first are in `following`."""
        jobs = [self.short(f"{prefix}0", 7)]
        jobs += [
            self.short(f"{prefix}{place}", after=f"{prefix}{place - 1}")
            for place in range(1, length)
        ]
        self.following = jobs[1:]
        return jobs

    async def submit(self, jobs: Sequence[Job]) -> list[End]:
        """Submits jobs that are ready; how all ended."""
        for job in jobs:
            self.dispatcher.submit(job)
        return [await self.end(job) for job in jobs]

    async def shared(self, make: Callable[[str], Sequence[Job]], ready: int) -> list[list[End]]:
        """How jobs ended in the rounds that it took until all but a few shared calls.

        On a busy machine, one that is interrupted at a bad moment has its call for itself. `make` gets a prefix
        for the ids of a round's jobs, of which so many are ready.
        """
        self.remember_nothing()
        rounds: list[list[End]] = []
        while True:
            jobs = make(f"round{len(rounds)}-")
            for job in jobs[:ready]:
                self.dispatcher.submit(job)
            rounds.append([await self.end(job) for job in jobs])
            done = [end for end in rounds[-1] if isinstance(end, TaskSucceeded)]
            if 2 * len({call_of(end) for end in done}) <= len(done):
                return rounds
            assert len(rounds) < 50


def call_of(end: End) -> object:
    """The Ray task that an attempt ran in."""
    assert isinstance(end, TaskSucceeded), end
    return end.result["call"]


@pytest.fixture
async def bench(engine: None, tmp_path: Path) -> AsyncIterator[ShortTasks]:
    """A started dispatcher."""
    folder = (tmp_path / "values").as_uri()
    bench = ShortTasks(RayTaskDispatcher(folder, inline_value_bytes=1024, cancel_grace=0.5))
    await bench.start()
    yield bench
    assert bench.dispatcher.load().waiting == 0
    await bench.dispatcher.close()


async def test_short_tasks_share_calls_and_keep_their_results(bench: ShortTasks) -> None:
    """Fewer calls than tasks; each its own result, and what it printed."""
    rounds = await bench.shared(lambda of: [bench.short(f"{of}{x}", x) for x in range(40)], 40)
    for number, ends in enumerate(rounds):
        assert [end.result["x"] for end in ends if isinstance(end, TaskSucceeded)] == [*range(40)]
        for x in range(40):
            (entry,) = await bench.printed(bench.short(f"round{number}-{x}", x))
            assert entry.text == f"in {x}\n"


async def test_tasks_of_different_runs_share_nothing(bench: ShortTasks) -> None:
    """So that each run can be cancelled by itself."""
    jobs = [replace(bench.short(f"t{x}", x), run_id=RunId(f"r{x % 2}")) for x in range(20)]
    calls = [call_of(end) for end in await bench.submit(jobs)]
    assert not set(calls[::2]) & set(calls[1::2])


async def test_an_error_is_that_of_one(bench: ShortTasks) -> None:
    """Those before and behind it succeed."""

    def make(prefix: str) -> list[Job]:
        return [bench.short(f"{prefix}{x}", x, fail="no" if x == 5 else "") for x in range(10)]

    for ends in await bench.shared(make, 10):
        failed = ends.pop(5)
        assert isinstance(failed, TaskFailed)
        assert (failed.error.type, failed.error.message) == ("ValueError", "no")
        assert all(isinstance(end, TaskSucceeded) for end in ends)


async def test_one_that_kills_the_process_is_lost_alone(bench: ShortTasks) -> None:
    """The others run again, each in a call of its own, and nothing of the loss is told of them."""
    bench.remember_nothing()
    jobs = [bench.short(f"t{x}", x, die=x == 3) for x in range(8)]
    ends = await bench.submit(jobs)
    assert isinstance(ends.pop(3), TaskLost)
    assert all(isinstance(end, TaskSucceeded) for end in ends)


async def test_one_that_takes_long_holds_up_nobody(bench: ShortTasks, tmp_path: Path) -> None:
    """Those before it are told while it runs, and those behind it run elsewhere, once."""
    go, mark = tmp_path / "go", tmp_path / "mark"
    jobs = [
        bench.short(f"t{x}", x, mark=str(mark), until=str(go) if x == 4 else "") for x in range(12)
    ]
    for job in jobs:
        bench.dispatcher.submit(job)
    slow = jobs[4]
    for job in jobs:
        if job is not slow:
            assert isinstance(await bench.end(job), TaskSucceeded)
    assert isinstance(await bench.started(slow), TaskStarted)
    assert not bench.ends(slow)
    go.touch()
    assert isinstance(await bench.end(slow), TaskSucceeded)
    assert sorted(map(int, mark.read_text().split())) == [*range(12)]


async def test_one_that_takes_long_and_kills_its_process_is_lost(
    bench: ShortTasks, tmp_path: Path
) -> None:
    """It had the call for itself, so it is known who died."""
    go = tmp_path / "go"
    jobs = [bench.short("a", 1), bench.short("b", 2, until=str(go), die=True), bench.short("c", 3)]
    bench.remember_nothing()
    for job in jobs:
        bench.dispatcher.submit(job)
    await bench.started(jobs[1])
    for job in (jobs[0], jobs[2]):
        assert isinstance(await bench.end(job), TaskSucceeded)
    go.touch()
    assert isinstance(await bench.end(jobs[1]), TaskLost)


async def test_one_that_was_begun_ahead_is_told_of_when_it_is_asked_for(
    bench: ShortTasks, tmp_path: Path
) -> None:
    """As when the database was away meanwhile: it runs once, and its start is told then."""
    go, mark = tmp_path / "go", tmp_path / "mark"
    first = bench.short("a", 1)
    follower = bench.short("b", after="a", until=str(go), mark=str(mark))
    bench.dispatcher._fusing._ahead = lambda *_: [follower]  # type: ignore[attr-defined]
    (end,) = await bench.submit([first])
    assert isinstance(end, TaskSucceeded)
    assert (RunId("r"), TaskId("b")) not in bench.reports
    arguments = (*follower.arguments[:-1], replace(follower.arguments[-1], value=end.values["x"]))
    bench.dispatcher.submit(replace(follower, arguments=arguments, after=()))
    await bench.started(follower)
    go.touch()
    assert isinstance(await bench.end(follower), TaskSucceeded)
    assert mark.read_text() == "1\n"


async def test_a_chain_runs_in_few_calls(bench: ShortTasks) -> None:
    """Each with the value of the one before, begun after its end, and reported in their order."""
    for ends in await bench.shared(lambda prefix: bench.chain(10, prefix), 1):
        for before, end in itertools.pairwise(ends):
            assert isinstance(end, TaskSucceeded)
            assert isinstance(before, TaskSucceeded)
            assert end.result["x"] == 7
            assert before.at <= end.placement.at
        ids = [end.task_id for end in ends]
        assert [task for _, task in bench.order if task in ids] == ids


async def test_nothing_follows_one_that_failed(bench: ShortTasks, tmp_path: Path) -> None:
    """It was never asked for, so it neither runs nor is told of."""
    mark = tmp_path / "mark"
    first = bench.short("a", 1, fail="no")
    bench.following = [bench.short("b", after="a", mark=str(mark)), bench.short("c", after="b")]
    (end,) = await bench.submit([first])
    assert isinstance(end, TaskFailed)
    await bench.submit([bench.short("d", 2)])
    assert not mark.exists()
    assert not any(task in ("b", "c") for _, task in bench.order)


async def test_what_nobody_asks_for_is_forgotten(bench: ShortTasks) -> None:
    """It may have run ahead, when its run was cancelled; it can be asked for later."""
    jobs = bench.chain(2)
    follower = bench.following.pop()
    bench.dispatcher._fusing._ahead = lambda *_: [follower]  # type: ignore[attr-defined]
    (end,) = await bench.submit(jobs[:1])
    assert isinstance(end, TaskSucceeded)
    assert not bench.ends(follower)
    await bench.until_idle()
    argument = replace(follower.arguments[0], value=end.values["x"])
    await bench.submit([replace(follower, arguments=(argument,), after=())])


async def test_a_large_output_goes_to_the_next_call(bench: ShortTasks) -> None:
    """By reference, as always: what follows it does not run with it."""
    jobs = [bench.short("t0", 7, large=100_000), bench.short("t1", after="t0")]
    bench.following = jobs[1:]
    bench.dispatcher.submit(jobs[0])
    first, second = [await bench.end(job) for job in jobs]
    assert isinstance(first, TaskSucceeded)
    assert first.values["large"].location is not None
    assert call_of(second) != call_of(first)


async def test_those_of_a_cancelled_run_end(bench: ShortTasks, tmp_path: Path) -> None:
    """The one that runs is interrupted, and none behind it is begun."""
    mark = tmp_path / "mark"
    jobs = [
        bench.short(f"t{x}", x, mark=str(mark), until=str(tmp_path / "go") if x == 0 else "")
        for x in range(6)
    ]
    for job in jobs:
        bench.dispatcher.submit(job)
    await bench.started(jobs[0])
    for job in jobs:
        bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    await bench.until_idle()
    assert not bench.ends(jobs[0])
    assert isinstance((await bench.submit([bench.short("next", 1)]))[0], TaskSucceeded)


async def test_one_that_was_long_is_alone_the_next_time(bench: ShortTasks) -> None:
    """Until it has been short for a while."""
    bench.dispatcher._durations.observe(bench.code(where), 1.0)  # type: ignore[attr-defined]
    ends = await bench.submit([bench.short(f"t{x}", x) for x in range(6)])
    assert len({call_of(end) for end in ends}) == 6


async def test_what_has_a_time_out_or_runs_again_is_alone(bench: ShortTasks) -> None:
    """A time-out counts from a start that is told first; a second attempt had no luck in the first."""
    jobs = [replace(bench.short(f"t{x}", x), timed=x < 3, attempt=2) for x in range(6)]
    ends = await bench.submit(jobs)
    assert len({call_of(end) for end in ends}) == 6
