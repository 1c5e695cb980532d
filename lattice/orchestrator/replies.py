"""Idempotency keys: a request that is sent again gets the answer that the first one got.

The answer is committed together with what it answers, so there is no moment at which one is durable
without the other. The same request sent again while the first is under way waits for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from lattice.errors import ConflictError, LatticeError
from lattice.orchestrator.journal import Journal
from lattice.ports.environment import Clock
from lattice.ports.service import Once
from lattice.ports.store import PutReply, Store, Write


@dataclass(frozen=True, slots=True)
class Effect:
    """What a request comes to: its answer, what is to be durable, and what to do then.

    `begin` is called as soon as the writes are durable, before the answer is given.
    """

    reply: Mapping[str, str]
    writes: Sequence[Write]
    begin: Callable[[], None] | None = None


class Replies:
    """Carries out requests, each at most once for its idempotency key."""

    def __init__(self, store: Store, journal: Journal, clock: Clock) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._under_way: dict[str, tuple[str, asyncio.Future[Mapping[str, str]]]] = {}

    async def perform(
        self, once: Once | None, prepare: Callable[[], Awaitable[Effect]]
    ) -> Mapping[str, str]:
        """Prepares an effect, makes it durable and returns its answer.

        `prepare` must not await between its last change in memory and its return.

        Raises:
            ConflictError: the key of `once` was used for another request.
            StoreUnavailableError: the database is away; what was prepared before may still be done.
        """
        if once is None:
            return await self._perform(None, prepare)
        while once.stored_key in self._under_way:
            fingerprint, future = self._under_way[once.stored_key]
            if fingerprint != once.fingerprint:
                raise ConflictError(once.key)
            await asyncio.wait([future])
            if future.cancelled():
                continue
            return future.result()
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._under_way[once.stored_key] = once.fingerprint, future
        try:
            reply = await self._stored(once) or await self._perform(once, prepare)
        except asyncio.CancelledError:
            future.cancel()
            raise
        except Exception as error:
            future.set_exception(error)
            raise
        else:
            future.set_result(reply)
            return reply
        finally:
            del self._under_way[once.stored_key]

    async def _stored(self, once: Once) -> Mapping[str, str] | None:
        # A request that was given up may have left its writes with the journal.
        await self._journal.barrier()
        record = await asyncio.to_thread(self._store.load_reply, once.stored_key)
        if record is None:
            return None
        if record.fingerprint != once.fingerprint:
            raise ConflictError(once.key)
        reply: Mapping[str, str] = json.loads(record.document)
        return reply

    async def _perform(
        self, once: Once | None, prepare: Callable[[], Awaitable[Effect]]
    ) -> Mapping[str, str]:
        self._journal.check()
        try:
            effect = await prepare()
        except LatticeError:
            # One that was replaced may refuse what is right by now.
            await self._journal.barrier()
            raise
        writes = list(effect.writes)
        if once is not None:
            document = json.dumps(effect.reply)
            writes.append(PutReply(once.stored_key, once.fingerprint, document, self._clock.now()))
        await self._journal.append(writes, effect.begin)
        return effect.reply
