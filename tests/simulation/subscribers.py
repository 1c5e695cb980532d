"""Subscribers of runs: early, late, slow; they leave, come back, and are cut off with their process."""

from __future__ import annotations

import asyncio

from lattice.errors import UnavailableError
from lattice.ids import RunId, WorkflowId
from tests.simulation.ledger import Ledger
from tests.simulation.nature import Nature
from tests.simulation.process import DisconnectedError
from tests.simulation.requests import Service


class Subscriber:
    """Follows one run to its end, in as many streams as it takes."""

    def __init__(
        self,
        run_id: RunId,
        workflow_id: WorkflowId,
        service: Service,
        ledger: Ledger,
        nature: Nature,
    ) -> None:
        self._run_id = run_id
        self._workflow_id = workflow_id
        self._service = service
        self._ledger = ledger
        self._nature = nature
        self._seen = 0

    async def live(self) -> None:
        """Ends when the run's last message has come, and nothing after it."""
        nature = self._nature
        await asyncio.sleep(nature.delay(nature.choice((0.001, 1.0, 10.0))))
        while True:
            process = await self._service.somebody()
            stays = nature.delay(1.0) if nature.strikes(0.3) else None
            try:
                async with asyncio.timeout(stays):
                    await process.stream(
                        self._run_id,
                        self._workflow_id if nature.flips(0.5) else None,
                        self._seen,
                        self._receive,
                        nature.choice((0.001, 0.3)),
                    )
            except (DisconnectedError, UnavailableError, TimeoutError):
                await asyncio.sleep(nature.delay(0.2))
                continue
            log = self._ledger.logs[self._run_id]
            if log.status is None or self._seen != len(log.texts):
                self._ledger.fail(f"a stream of {self._run_id} ended after message {self._seen}")
            return

    def _receive(self, texts: list[str]) -> None:
        self._ledger.note(f"{self._run_id}: messages after {self._seen}: {len(texts)}")
        self._ledger.delivered(self._run_id, self._seen, texts)
        self._seen += len(texts)
