"""Ends Ray tasks before their time: they are asked, then forced, and then their process is killed.

Ray 2.60 hands each cancel to the worker's interpreter, a forced one too, behind the one before. So code that never lets
go of the interpreter, such as a regular expression that backtracks for ever, is only ended from outside its process.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lattice.execution import process_names, ray_cluster, ray_worker

Frame = ray.ObjectRef[bytes]

#: The longest pause between attempts to kill a process that cannot be reached, in seconds.
_LONGEST_PAUSE = 60.0

_logger = logging.getLogger(__name__)


class Endings:
    """Tasks that are being ended. `grace`: seconds that each has between being asked, forced and killed."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._under_way: set[asyncio.Task[None]] = set()
        self._kill = ray.remote(ray_worker.kill_process)

    def end(self, reference: Frame, call: str) -> None:
        """Ends the task whose result is `reference`, and which goes by the name of `call` in its process."""
        ray.cancel(reference, force=False)
        ending = asyncio.ensure_future(self._insist(reference, call))
        self._under_way.add(ending)
        ending.add_done_callback(self._ended)

    def _ended(self, ending: asyncio.Task[None]) -> None:
        self._under_way.discard(ending)
        if not ending.cancelled() and ending.exception() is not None:
            _logger.error("a task could not be ended", exc_info=ending.exception())

    async def _insist(self, reference: Frame, call: str) -> None:
        over = ray_future(reference)
        over.add_done_callback(lambda future: future.cancelled() or future.exception())
        if await _is_over(over, self._grace):
            return
        force(reference)
        pause = self._grace
        while not await _is_over(over, pause):
            try:
                await self._kill_everywhere(process_names.name_of(call))
            except Exception:
                _logger.warning("a task that no cancel has ended goes on", exc_info=True)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _kill_everywhere(self, name: str) -> None:
        """A task that has not said where it runs may be on any node."""
        nodes = await asyncio.to_thread(ray_cluster.live_nodes)
        there = [NodeAffinitySchedulingStrategy(node.node_id, soft=False) for node in nodes]
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
        kills = [
            self._kill.options(scheduling_strategy=each, **options).remote(name) for each in there
        ]
        done, _ = await asyncio.wait([ray_future(kill) for kill in kills], timeout=_LONGEST_PAUSE)
        for kill in done:
            if (error := kill.exception()) is not None:
                _logger.warning("a process could not be looked for: %s", error)
            elif kill.result():
                _logger.warning(
                    "process %s was killed, as no cancel had ended it", kill.result().decode()
                )

    def close(self) -> None:
        """Leaves those under way as they are."""
        for ending in self._under_way:
            ending.cancel()


async def _is_over(over: asyncio.Future[Any], seconds: float) -> bool:
    done, _ = await asyncio.wait([over], timeout=seconds)
    return bool(done)


def ray_future(reference: ray.ObjectRef[Any]) -> asyncio.Future[Any]:
    """The value of a reference, for this event loop."""
    future: Any = reference.future()
    return asyncio.wrap_future(future)


def force(reference: Frame) -> None:
    """Ends a Ray task with its process, as far as Ray can."""
    ray.cancel(reference, force=True)
