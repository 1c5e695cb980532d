"""A process of the service: one orchestrator and all that dies with it.

Its tasks, timers and blocking calls are known, so it can be killed between any two steps of the loop:
from then on nothing of it runs, except a commit that was already on its way to the database. Others
reach it by `call` and `stream`, as over a network: the answer may be lost with the process.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar, cast

from lattice.ids import RunId, WorkflowId
from lattice.observability.telemetry import NoTelemetry
from lattice.orchestrator import Limits, Orchestrator, Surroundings, Tenancy
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds
from tests.simulation.dispatcher import SimulatedDispatcher
from tests.simulation.ledger import TENANT, Account, Ledger
from tests.simulation.loop import HOST
from tests.simulation.nature import Nature
from tests.simulation.store import CrashingStore

T = TypeVar("T")

_LIMITS = Limits(max_tasks_per_workflow=20, max_result_bytes=1_000, call_timeout=60)


class DisconnectedError(Exception):
    """The process died, or the connection to it broke: whether it did what was asked is not known."""


class NoStorage:
    """Storage without anything in it: all values of the simulation are small."""

    def read(self, location: str, start: int = 0, size: int = -1) -> bytes:
        """Raises FileNotFoundError."""
        raise FileNotFoundError(location)


class ProcessClock:
    """The virtual time, and timers that die with their process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def now(self) -> float:
        """Virtual seconds since the epoch."""
        return asyncio.get_running_loop().time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` after `delay` seconds; calling what it returns prevents that."""
        timers = self._process.timers

        def fire() -> None:
            timers.pop(handle, None)
            callback()

        def prevent() -> None:
            timers.pop(handle, None)
            handle.cancel()

        handle = asyncio.get_running_loop().call_later(delay, fire, context=self._process.context)
        timers[handle] = None
        return prevent


class Process:
    """One life of the service. `in_charge` counts up: it is also the number of its lease."""

    def __init__(
        self, number: int, nature: Nature, ledger: Ledger, database: MemoryStore, ids: CountedIds
    ) -> None:
        self.number = number
        self.alive = True
        self._loop = asyncio.get_running_loop()
        self._nature = nature
        self._ledger = ledger
        self.context = contextvars.copy_context()
        self.context.run(HOST.set, self)
        # Dictionaries, as the order of a set is not the same from one Python process to the next.
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._pending: dict[asyncio.TimerHandle, None] = {}
        #: The timers that the orchestrator has armed.
        self.timers: dict[asyncio.TimerHandle, None] = {}
        self.account = Account(number, self.cannot_store)
        self.dispatcher = SimulatedDispatcher(self.account, ledger, nature, self.later)
        self.store = CrashingStore(self.account, database, ledger, nature, self.kill)
        around = Surroundings(
            self.store,
            NoStorage(),
            self.dispatcher,
            ProcessClock(self),
            ids,
            NoTelemetry(),
            _LIMITS,
            tenancy=Tenancy(max_concurrent_tasks={TENANT: nature.bound} if nature.bound else {}),
        )
        self.orchestrator = Orchestrator(around)

    def __repr__(self) -> str:
        return f"process {self.number}"

    # -- life --------------------------------------------------------------------------------

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Takes note of a task, to end it with the process."""
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

    def later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` in this process after `delay`, unless the process is dead by then."""

        def run() -> None:
            self._pending.pop(handle, None)
            callback()

        def prevent() -> None:
            self._pending.pop(handle, None)
            handle.cancel()

        if not self.alive:
            return lambda: None
        handle = self._loop.call_later(delay, run, context=self.context)
        self._pending[handle] = None
        return prevent

    def block(self, work: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        """Runs `work` after a while, and tells its outcome after another."""
        mean = self._nature.mood.blocking

        def settle(result: Any, error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def begin() -> None:
            # What a dead process had asked of the database may still be done, or not.
            if not self.alive and self._nature.flips(0.5):
                return
            try:
                result, error = work(), None
            except Exception as raised:
                result, error = None, raised
            self.later(self._nature.delay(mean), lambda: settle(result, error))

        if self.alive:
            self._loop.call_later(self._nature.delay(mean), begin, context=self.context)
        else:
            # What a cancelled task does on its way out would never have been done.
            done.cancel()

    def kill(self) -> None:
        """Ends the process at once, as `kill -9` does."""
        if not self.alive:
            return
        self.alive = False
        self._ledger.note(f"{self} is killed")
        self.dispatcher.die()
        for handle in [*self._pending, *self.timers]:
            handle.cancel()
        self._pending.clear()
        self.timers.clear()
        for task in [*self._tasks]:
            task.cancel()

    def cannot_store(self) -> bool:
        """Whether the orchestrator knows that it can make nothing durable, just now or ever again."""
        parts = self.orchestrator._started
        return parts is not None and (parts.journal.failure or parts.journal.outage) is not None

    def left_over(self) -> list[str]:
        """What an orchestrator without work still holds."""
        left = [f"timer at {handle.when():.3f}" for handle in self.timers]
        left += [f"attempt {key}" for key in self.account.active()]
        left += [f"values of {key}" for key in self.account.held]
        parts = self.orchestrator._started
        if parts is not None:
            left += [f"run {run_id} in memory" for run_id in parts.runs._live]
            left += [f"feed of {run_id}" for run_id in parts.feed._live]
            left += [f"key {key} under way" for key in parts.replies._under_way]
            left += [f"{each} waits for its turn" for each in parts.quotas._waiting]
            left += [f"the place of {each}" for each in parts.quotas._running.get(TENANT, ())]
        return left

    # -- the network -------------------------------------------------------------------------

    async def call(
        self,
        ask: Callable[[Orchestrator], Coroutine[Any, Any, T]],
        answered: Callable[[T], None] = lambda answer: None,
    ) -> T:
        """Asks the orchestrator; `answered` is called as soon as the answer leaves it.

        Raises:
            DisconnectedError: no answer came.
        """

        async def serve() -> T:
            answer = await ask(self.orchestrator)
            answered(answer)
            return answer

        await asyncio.sleep(self._nature.delay(0.002))
        return await self._serve(serve())

    async def stream(
        self,
        run_id: RunId,
        workflow_id: WorkflowId | None,
        after: int,
        receive: Callable[[list[str]], None],
        pace: float,
    ) -> None:
        """Gives the messages of a run to `receive` until the orchestrator says that was the last.

        Raises:
            DisconnectedError: the stream broke.
        """

        async def serve() -> None:
            stream = self.orchestrator.follow(run_id, workflow_id, after)
            async with aclosing(cast("AsyncGenerator[list[str], None]", stream)) as groups:
                async for group in groups:
                    receive(group)
                    await asyncio.sleep(self._nature.delay(pace))

        await self._serve(serve())

    async def _serve(self, work: Coroutine[Any, Any, T]) -> T:
        if not self.alive:
            work.close()
            raise DisconnectedError
        task = self._loop.create_task(work, context=self.context)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            # As the engine does with a request whose client has gone.
            task.cancel()
            raise
        if task.cancelled():
            raise DisconnectedError
        error = task.exception()
        if self._nature.strikes(0.01):
            raise DisconnectedError
        if error is not None:
            raise error
        return task.result()
