"""One seeded world: a database, the processes that serve it, people who use it, and what befalls them.

For some virtual seconds everything may go wrong; then the world is calm, and everything that was begun
must come to its end within bounded time, and leave nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

from lattice.errors import UnavailableError
from lattice.orchestrator import catalogue, feed, recovery
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds
from tests.simulation.clients import Client
from tests.simulation.ledger import TENANT, Ledger
from tests.simulation.loop import NothingDueError, SimulatedLoop
from tests.simulation.nature import Nature
from tests.simulation.process import DisconnectedError, Process
from tests.simulation.rules import Violation

#: Virtual seconds within which all must have ended once the world is calm, and after which late reports
#: and timers of what has ended are over.
_PATIENCE = 600.0
_SETTLING = 40.0
#: A world that takes more steps than this goes round in circles.
_MOST_STEPS = 200_000

#: What the orchestrator may log as an error: a failed commit. Other errors are defects.
_EXPECTED = ("the journal stops",)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a world went. `violation` is None if every promise was kept."""

    seed: int
    trace: list[str]
    violation: Violation | None
    processes: int
    runs: int
    steps: int


def run(seed: int) -> Outcome:
    """Runs the world of a seed to its end, or to the first violation."""
    world = World(seed)
    with _small_pages(), _errors_noted(world.ledger):
        world.run()
    return Outcome(
        seed=seed,
        trace=world.ledger.trace,
        violation=world.ledger.violation,
        processes=world.started,
        runs=len(world.ledger.logs),
        steps=world.steps,
    )


class World:
    """The parts of one world, and the supervisor that keeps one process in charge."""

    def __init__(self, seed: int) -> None:
        self.nature = Nature(seed)
        self._loop = SimulatedLoop(self._after_step)
        self._loop.set_exception_handler(self._unhandled)
        self.ledger = Ledger(self._loop.time, self.nature.bound)
        self._database = MemoryStore()
        self._ids = CountedIds()
        self._processes: list[Process] = []
        self._changed = asyncio.Event()
        self.started = 0
        self.steps = 0
        self._crash_at = self.nature.steps_to_crash()
        self._course: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Lets the world go its way. The violation, if any, is in the ledger."""
        loop = self._loop
        try:
            self._course = loop.create_task(self._live())
            loop.run_until_complete(self._course)
        except Violation as violation:
            self.ledger.fail(str(violation))
        except NothingDueError:
            self.ledger.fail("everybody waits for something that never happens")
        finally:
            self._bury()

    async def somebody(self) -> Process:
        """A process to talk to: mostly the newest, at times an older one that is still there."""
        while not (alive := [each for each in self._processes if each.alive]):
            self._changed.clear()
            await self._changed.wait()
        return alive[-1] if self.nature.flips(0.8) else self.nature.choice(alive)

    # -- the course of the world -------------------------------------------------------------

    async def _live(self) -> None:
        nature = self.nature
        clients = [
            asyncio.create_task(
                Client(
                    f"client-{number}", self, self.ledger, nature, None if number % 2 else TENANT
                ).live(),
                name=f"client {number}",
            )
            for number in range(nature.choice((1, 2, 2, 3)))
        ]
        supervisor = asyncio.create_task(self._supervise(), name="supervisor")
        await asyncio.sleep(3.0 + nature.delay(8.0))
        nature.calm = True
        self.ledger.note("the world is calm")
        await asyncio.wait(clients, timeout=_PATIENCE, return_when=asyncio.FIRST_EXCEPTION)
        for task in [*clients, supervisor]:
            if task.done() and (error := task.exception()) is not None:
                raise Violation(f"{task.get_name()} got {error!r}") from error
            if not task.done() and task is not supervisor:
                raise Violation(f"{task.get_name()} waits for ever")
        for _ in range(int(_PATIENCE / 10.0)):
            if all(log.status for log in self.ledger.logs.values()):
                break
            await asyncio.sleep(10.0)
        await asyncio.sleep(_SETTLING)
        supervisor.cancel()
        self._check_end()

    async def _supervise(self) -> None:
        """Keeps a process in charge: starts, asks after its health, replaces, and lets two overlap."""
        nature = self.nature
        while True:
            current = self._processes[-1] if self._processes else None
            if current is None or not current.alive:
                await self._start()
                continue
            await asyncio.sleep(5.0 if nature.calm else 1.0)
            if nature.strikes(nature.mood.takeover / 4):
                self._loop.create_task(self._end(current, min(20.0, nature.delay(2.0))))
                await self._start()
                continue
            try:
                await current.call(lambda orchestrator: orchestrator.check_health())
            except UnavailableError:
                await self._end(current, 0.0)
            except DisconnectedError:
                pass

    async def _start(self) -> None:
        await asyncio.sleep(self.nature.delay(0.3))
        self.started += 1
        process = Process(self.started, self.nature, self.ledger, self._database, self._ids)
        self.ledger.note(f"{process} starts")
        try:
            await process.call(lambda orchestrator: orchestrator.start_monitor())
        except (UnavailableError, DisconnectedError):
            await self._end(process, 0.0)
            return
        self._processes.append(process)
        self._changed.set()

    async def _end(self, process: Process, after: float) -> None:
        """Ends a process, in order or at once."""
        await asyncio.sleep(after)
        if process.alive and self.nature.flips(0.5):
            self.ledger.note(f"{process} closes")
            try:
                await process.call(lambda orchestrator: orchestrator.close())
                await asyncio.sleep(self.nature.delay(0.1))
                for left in process.left_over():
                    self.ledger.fail(f"{process} left after its end: {left}")
            except (UnavailableError, DisconnectedError):
                pass
        process.kill()

    def _check_end(self) -> None:
        for run_id, log in self.ledger.logs.items():
            if log.status is None:
                self.ledger.fail(f"{run_id} never ended")
        for process in self._processes:
            if process.alive:
                for left in process.left_over():
                    self.ledger.fail(f"{process} still holds {left}")
        if sum(process.alive for process in self._processes) != 1:
            self.ledger.fail("not exactly one process is left")

    # -- between the steps -------------------------------------------------------------------

    def _after_step(self) -> None:
        self.steps += 1
        if self._course is not None and self._course.done():
            return
        if self.ledger.violation is not None:
            raise self.ledger.violation
        if self.steps >= self._crash_at:
            self._crash_at += self.nature.steps_to_crash()
            alive = [process for process in self._processes if process.alive]
            if alive and not self.nature.calm:
                self.nature.choice(alive).kill()
        if self.steps > _MOST_STEPS:
            raise Violation("the world goes round in circles")

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self.ledger.fail(f"unhandled: {context.get('message')}: {error!r}")

    def _bury(self) -> None:
        """Ends all tasks, so that nothing of this world is left to be collected in the next."""
        self._loop.set_exception_handler(lambda loop, context: None)
        for process in self._processes:
            process.alive = False
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.after_step = lambda: None
        if tasks:
            self._loop.run_until_complete(asyncio.wait(tasks))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


@contextmanager
def _small_pages() -> Iterator[None]:
    """Makes the small worlds cross the bounds that only large ones would reach."""
    with (
        mock.patch.object(feed, "_RECENT_MESSAGES", 4),
        mock.patch.object(feed, "_GROUP", 3),
        mock.patch.object(recovery, "_PAGE", 3),
        mock.patch.object(catalogue, "_KEPT", 1),
    ):
        yield


@contextmanager
def _errors_noted(ledger: Ledger) -> Iterator[None]:
    """Takes errors that the orchestrator logs for defects, and keeps its log out of the terminal."""

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR and record.msg not in _EXPECTED:
                ledger.fail(
                    f"logged: {record.getMessage()}: {record.exc_info and record.exc_info[1]}"
                )

    logger, watch = logging.getLogger("lattice"), Watch()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(watch)
    try:
        yield
    finally:
        logger.removeHandler(watch)
        logger.propagate = propagate
