"""An event loop without threads, sockets or waiting: time jumps to the next timer when nothing is ready.

One handle runs in each step, so a world can be stopped, looked at or struck between any two of them.
What asyncio would run in a thread runs on the loop, at moments that the world chooses.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: Virtual time begins here, in seconds since the epoch.
EPOCH = 1_000_000.0


class Host(Protocol):
    """The process that a task belongs to: it can die with all its tasks."""

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """A task of the process was made."""

    def block(self, work: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        """Runs blocking work at some moment, and sets the result in `done` at a later one."""


#: The process that the code runs in that is running now; None for the world around the processes.
HOST: ContextVar[Host | None] = ContextVar("HOST", default=None)


class NothingDueError(Exception):
    """Everybody waits for something that will never happen."""


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs the handles in asyncio's order; `after_step` is called after each and may raise."""

    # asyncio's own, which no stub tells of.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, after_step: Callable[[], None]) -> None:
        super().__init__()
        self._now = EPOCH
        #: Replaced when nothing is to be looked at any more.
        self.after_step = after_step

    def time(self) -> float:
        """Virtual seconds since the epoch."""
        return self._now

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """A task, which belongs to the process whose context it gets."""
        task = super().create_task(coro, name=name and str(name), context=context)
        host = HOST.get() if context is None else context.get(HOST)
        if host is not None:
            host.adopt(task)
        return task

    def run_in_executor(  # type: ignore[override]  # asyncio's is typed with variadic arguments
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Lets the process at hand decide when `func` runs and when its result is known."""
        host = HOST.get()
        assert host is not None, "only processes block"
        done: asyncio.Future[T] = self.create_future()
        host.block(lambda: func(*args), done)
        return done

    def _run_once(self) -> None:
        timers = self._scheduled
        while timers and timers[0].cancelled():
            heapq.heappop(timers)
        if not self._ready:
            if not timers:
                raise NothingDueError
            self._now = max(self._now, timers[0].when())
        while timers and timers[0].when() <= self._now:
            self._ready.append(heapq.heappop(timers))
        handle = self._ready.popleft()
        if not handle.cancelled():
            handle._run()
            self.after_step()

    def _write_to_self(self) -> None:
        """There is no selector to wake."""
