"""Looks, while runs are under way, whether the cluster can still hold what they ask for.

A run is refused at its start if no node could ever hold one of its tasks. Nodes may be lost later: what asks
for something that no node has any more would then wait for ever without a word. It fails after a while with
the reason; the while is for nodes that come back. What would fit on a node that somebody has disconnected
waits, as that node is there and may be connected again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from lattice.errors import InvalidRequestError
from lattice.orchestrator.nodes import NodeRegistry
from lattice.orchestrator.runs import Runs
from lattice.ports.environment import Clock
from lattice.workflow.placement import check
from lattice.workflow.task import Resources

#: Seconds between two looks.
_PERIOD = 2.0

_log = logging.getLogger(__name__)


class Placing:
    """The look. `refresh` asks for the engine's nodes; `patience` is in seconds, None for ever."""

    def __init__(
        self,
        runs: Runs,
        nodes: NodeRegistry,
        refresh: Callable[[], Awaitable[None]],
        clock: Clock,
        patience: float | None,
    ) -> None:
        self._runs = runs
        self._nodes = nodes
        self._refresh = refresh
        self._clock = clock
        self._patience = patience
        #: Since when no node could hold what asks for that.
        self._since: dict[Resources, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on, looks every few seconds."""
        self._task = asyncio.create_task(self._keep(), name="placing")

    async def close(self) -> None:
        """Stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def look(self) -> None:
        """Fails what has waited too long for a node that is not there. Raises what `refresh` does."""
        needs = self._runs.needs()
        if not needs:
            self._since.clear()
            return
        # Also tells the dispatcher of nodes that are to get nothing and have come back by themselves.
        await self._refresh()
        now = self._clock.now()
        capacities = self._nodes.capacities(disconnected=True)
        memories = self._nodes.all_gpu_memories()
        lacking: dict[Resources, str] = {}
        for resources in needs:
            try:
                check(resources, "the task", capacities, memories)
            except InvalidRequestError as error:
                lacking[resources] = str(error)
        self._since = {each: self._since.get(each, now) for each in lacking}
        if self._patience is None:
            return
        overdue = {
            each: f"{words}; the cluster has had no such node for {now - self._since[each]:.0f} s"
            for each, words in lacking.items()
            if now - self._since[each] >= self._patience
        }
        if overdue:
            self._runs.fail_queued(overdue)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                await self.look()
            except Exception:
                _log.warning("the nodes of the cluster could not be listed", exc_info=True)
