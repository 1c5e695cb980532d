"""Hears, while attempts run, that they have begun and what they print."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lattice.execution import wire
from lattice.execution.mailbox import Mailbox, new_name, new_owner
from lattice.execution.ray_worker import NAMESPACE
from lattice.ids import RunId
from lattice.ports.execution import TaskLogged

#: Seconds to wait after the mailbox failed.
_PAUSE = 0.2

_logger = logging.getLogger(__name__)

#: Is told that an attempt has begun.
Started = Callable[[wire.StartNote], None]


class StartListener:
    """Owns the mailbox actor and passes on what arrives in it. The actor dies with this process."""

    def __init__(
        self,
        started: Started,
        logged: Callable[[RunId, TaskLogged], None],
    ) -> None:
        self._logged = logged
        self._listeners = [started]
        self._owner = new_owner()
        self._create()
        self._task = asyncio.ensure_future(self._listen())

    def also(self, started: Started) -> None:
        """Tells one more; each knows which attempts are its own."""
        self._listeners.append(started)

    @property
    def mailbox(self) -> str:
        """The name of the mailbox in use."""
        return self._name

    def _create(self) -> None:
        self._name = new_name(self._owner)
        actor: Any = ray.remote(Mailbox)
        self._actor = actor.options(
            name=self._name,
            namespace=NAMESPACE,
            num_cpus=0,
            max_restarts=-1,
            # Beside its only reader. On another node it would keep that from being drained.
            scheduling_strategy=NodeAffinitySchedulingStrategy(
                ray.get_runtime_context().get_node_id(), soft=False
            ),
        ).remote()

    async def _listen(self) -> None:
        while True:
            try:
                reference = self._actor.drain.remote()
                starts, logs = await asyncio.wrap_future(reference.future())
                for hear, notes in ((self._hear_start, starts), (self._hear_logs, logs)):
                    for note in notes:
                        try:
                            hear(note)
                        except Exception:  # one note must not end the listening to all others
                            _logger.exception("a note in the mailbox could not be dealt with")
            except RayError as error:
                # What was in the mailbox is lost; ends make up for starts that were not heard of.
                _logger.warning("the mailbox failed: %s", error)
                await asyncio.sleep(_PAUSE)
                if isinstance(error, ActorDiedError):
                    self._create()

    def _hear_start(self, note: bytes) -> None:
        try:
            found = wire.decode_start(note)
        except wire.FrameError as error:
            _logger.warning("a note in the mailbox is not readable: %s", error)
            return
        for listener in self._listeners:
            listener(found)

    def _hear_logs(self, note: bytes) -> None:
        try:
            found = wire.decode_logs(note)
        except wire.FrameError as error:
            _logger.warning("a note of what was printed is not readable: %s", error)
            return
        for run_id, logged in found:
            self._logged(run_id, logged)

    async def close(self) -> None:
        """Stops listening and ends the actor."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if ray.is_initialized():
            ray.kill(self._actor)
