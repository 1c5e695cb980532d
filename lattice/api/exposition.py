"""Metrics where several processes answer: each one's go to where those of all are asked for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from lattice.errors import UnavailableError
from lattice.observability.metrics import Metrics

_log = logging.getLogger(__name__)

#: Seconds between two times that a process publishes its metrics by itself.
_PUBLISH_PERIOD = 5.0


class Exposition(Protocol):
    """Brings the metrics of all processes of a service together."""

    async def publish(self, process: str, text: bytes) -> None:
        """Notes the metrics of one process, in Prometheus' text format.

        Raises:
            UnavailableError: who collects them is not there.
        """

    async def collect(self, process: str, text: bytes) -> bytes:
        """Notes the metrics of one process, and returns those of all.

        Raises:
            UnavailableError: those of others are not to be had.
        """


@asynccontextmanager
async def publishing(metrics: Metrics | None, exposition: Exposition | None) -> AsyncIterator[None]:
    """Meanwhile, the metrics of this process go to where those of all processes are asked for."""
    if metrics is None or exposition is None or metrics.render() is None:
        yield
        return

    async def publish() -> None:
        while True:
            await asyncio.sleep(_PUBLISH_PERIOD)
            # What is not heard now, the next time tells.
            try:
                await exposition.publish(metrics.process, metrics.render() or b"")
            except UnavailableError:
                continue
            except Exception:
                _log.exception("the metrics of this process could not be published")

    task = asyncio.create_task(publish(), name="publishing")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
