"""How people ask: until they are answered, with the same idempotency key where the request has one.

They ask whatever process is there, also one that was deposed a moment ago.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from lattice.errors import ConflictError, UnavailableError
from lattice.orchestrator import Orchestrator
from lattice.ports.service import Once
from tests.simulation.ledger import Ledger
from tests.simulation.nature import Nature
from tests.simulation.process import DisconnectedError, Process

T = TypeVar("T")

Ask = Callable[[Orchestrator], Coroutine[Any, Any, T]]


class Service(Protocol):
    """Where a request may go."""

    async def somebody(self) -> Process:
        """A process that is alive."""


class Requests:
    """The requests of one person."""

    def __init__(self, name: str, service: Service, ledger: Ledger, nature: Nature) -> None:
        self._name = name
        self._service = service
        self._ledger = ledger
        self._nature = nature
        self._keys = 0

    async def send(
        self, ask: Ask[T], *names: Callable[[T], str], done: type[Exception] | None = None
    ) -> T | None:
        """Sends until it is answered; `names` are what the answer says is stored.

        `done` is what a request that is sent again may be refused with, as it was done before.
        """
        again = False
        while True:
            process = await self._service.somebody()
            try:
                if not self._nature.strikes(self._nature.mood.request_given_up):
                    return await process.call(
                        ask,
                        lambda answer: self._ledger.acknowledged(*[name(answer) for name in names]),
                    )
                async with asyncio.timeout(self._nature.delay(0.05)):
                    await process.call(ask)
            except (DisconnectedError, UnavailableError, TimeoutError):
                again = True
            except Exception as error:
                if not again or done is None or not isinstance(error, done):
                    raise
                return None
            again = True
            await asyncio.sleep(self._nature.delay(0.3))

    async def keyed(
        self,
        what: str,
        ask: Callable[[Orchestrator, Once], Coroutine[Any, Any, T]],
        *names: Callable[[T], str],
    ) -> T:
        """A request with a key of its own; sometimes twice at once, or again later, or for another thing."""
        self._keys += 1
        once = Once(f"{self._name}-{self._keys}", what)

        def once_more(once: Once = once) -> Coroutine[Any, Any, T | None]:
            return self.send(
                lambda orchestrator: ask(orchestrator, once), lambda answer: once.key, *names
            )

        nature = self._nature
        if nature.flips(0.2):
            first, second = await asyncio.gather(once_more(), once_more())
        else:
            first = second = await once_more()
        if nature.flips(0.2):
            await asyncio.sleep(nature.delay(0.5))
            second = await once_more()
        if first != second:
            self._ledger.fail(f"the key {once.key} was answered with {first} and with {second}")
        if nature.flips(0.05):
            try:
                await once_more(replace(once, fingerprint="another"))
                self._ledger.fail(f"the key {once.key} was taken for another request")
            except ConflictError:
                pass
        assert first is not None
        return first
