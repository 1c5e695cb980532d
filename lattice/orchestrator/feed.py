"""What subscribers of runs get: every message once, in order, however early or late they come.

A subscriber pulls at its own pace: from the recent messages of a live run, which are bounded, else from
the store. So a slow one holds up nothing, and one that leaves leaves nothing behind. Only messages
that the store has committed are in the feed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from lattice.errors import LatticeError, RunNotFoundError
from lattice.ids import RunId, TaskId
from lattice.ports.service import LogMessages
from lattice.ports.store import Store

#: How much of a live run is kept for subscribers that are nearly up to date; others read the store.
_RECENT_MESSAGES = 1_000
_RECENT_BYTES = 1024 * 1024
#: How much of all live runs together.
_RECENT_OF_ALL = 64 * 1024 * 1024
#: Most messages in one group, so that a long log is not in memory at once.
_GROUP = 500


class _Live:
    """The recent messages of a run that has not ended. `seq` is that of the last one."""

    def __init__(self, seq: int) -> None:
        self.seq = seq
        self.recent: deque[str] = deque()
        self.size = 0
        self.changed = asyncio.Event()

    def append(self, texts: list[str]) -> int:
        """Takes the next messages; by how much what is kept has grown."""
        before = self.size
        self.recent.extend(texts)
        self.seq += len(texts)
        self.size += sum(map(len, texts))
        while len(self.recent) > _RECENT_MESSAGES or (self.size > _RECENT_BYTES and self.recent):
            self.size -= len(self.recent.popleft())
        self.wake()
        return self.size - before

    def drop(self) -> int:
        """Keeps none of them; how much it was."""
        dropped, self.size = self.size, 0
        self.recent.clear()
        return dropped

    def after(self, seq: int) -> list[str] | None:
        """Messages after `seq`, or None if some of them are no longer kept."""
        count = self.seq - seq
        if count > len(self.recent):
            return None
        start = len(self.recent) - count
        return [self.recent[at] for at in range(start, min(start + _GROUP, len(self.recent)))]

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class LogListener:
    """What tasks of a run print, for one subscriber, each text once; of one that is slow the oldest is dropped."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, LogMessages]] = deque()
        self._size = 0
        self._told: dict[tuple[TaskId, int], int] = {}

    def put(self, seq: int, messages: LogMessages) -> None:
        """New messages, which come after the run's message `seq`."""
        self._waiting.append((seq, messages))
        self._size += _size(messages)
        while self._size > _RECENT_BYTES:
            self._size -= _size(self._waiting.popleft()[1])

    @property
    def next_seq(self) -> int | None:
        """The number of the message that those which wait come after."""
        return self._waiting[0][0] if self._waiting else None

    def take(self) -> LogMessages:
        """The next of those that wait."""
        messages = self._waiting.popleft()[1]
        self._size -= _size(messages)
        return messages

    def new(self, messages: LogMessages) -> LogMessages | None:
        """Those of `messages` that the subscriber has not got, which it now gets."""
        return messages.unseen(self._told)


def _size(messages: LogMessages) -> int:
    return sum(len(text) for _, text in messages.texts)


class Feed:
    """The messages of all runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._live: dict[RunId, _Live] = {}
        #: Those of which messages are kept, the one that had none for longest first, and how much it is.
        self._kept: OrderedDict[RunId, _Live] = OrderedDict()
        self._size = 0
        self._listeners: dict[RunId, list[LogListener]] = {}
        self._failure: LatticeError | None = None
        #: How many follow a run just now.
        self.followers = 0

    def fail(self, error: LatticeError) -> None:
        """Nothing more will become durable: whoever waits for the next message is told."""
        self._failure = error
        for live in self._live.values():
            live.wake()

    def open(self, run_id: RunId, seq: int) -> None:
        """A run goes live; `seq` is that of its last stored message, 0 if there is none."""
        self._live[run_id] = _Live(seq)

    def publish(self, run_id: RunId, texts: list[str]) -> None:
        """The next messages of a live run, as JSON texts, have become durable."""
        live = self._live[run_id]
        self._size += live.append(texts)
        self._kept[run_id] = live
        self._kept.move_to_end(run_id)
        while self._size > _RECENT_OF_ALL and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1].drop()

    def close(self, run_id: RunId) -> None:
        """The run's last message has been published; the rest is the store's."""
        live = self._live.pop(run_id)
        if self._kept.pop(run_id, None) is not None:
            self._size -= live.size
        live.wake()

    @contextmanager
    def listening(self, run_id: RunId) -> Iterator[LogListener]:
        """Hears what tasks of a run print from now on."""
        listener = LogListener()
        listeners = self._listeners.setdefault(run_id, [])
        listeners.append(listener)
        try:
            yield listener
        finally:
            listeners.remove(listener)
            if not listeners:
                self._listeners.pop(run_id, None)

    def is_heard(self, run_id: RunId) -> bool:
        """Whether anybody hears what tasks of a run print."""
        return run_id in self._listeners and run_id in self._live

    def tell_logs(self, run_id: RunId, messages: LogMessages) -> None:
        """A task of a live run has printed something."""
        live = self._live[run_id]
        for listener in self._listeners.get(run_id, ()):
            listener.put(live.seq, messages)
        live.wake()

    async def follow(
        self, run_id: RunId, after: int, logs: LogListener | None = None
    ) -> AsyncIterator[list[str] | LogMessages]:
        """Messages after `after`, in groups, until the run's last. The run exists.

        What `logs` has heard comes between them.

        Raises:
            RunNotFoundError: it was deleted meanwhile.
        """
        self.followers += 1
        try:
            async for group in self._follow(run_id, after, logs):
                yield group
        finally:
            self.followers -= 1

    async def _follow(
        self, run_id: RunId, after: int, logs: LogListener | None
    ) -> AsyncIterator[list[str] | LogMessages]:
        while True:
            printed_after = None if logs is None else logs.next_seq
            if logs is not None and printed_after is not None and printed_after <= after:
                new = logs.new(logs.take())
                if new is not None:
                    yield new
                continue
            live = self._live.get(run_id)
            if live is not None and after >= live.seq:
                if self._failure is not None:
                    raise self._failure.with_traceback(None)
                await live.changed.wait()
                continue
            group = live.after(after) if live is not None else None
            if group is None:
                group = await asyncio.to_thread(self._stored, run_id, after)
            if not group:
                return
            if printed_after is not None:
                group = group[: printed_after - after]
            yield group
            after += len(group)

    def _stored(self, run_id: RunId, after: int) -> list[str]:
        """The next group out of the store. Blocks. Raises RunNotFoundError."""
        group = self._store.load_messages(run_id, after, _GROUP)
        # A run goes before its messages do, so that what was read is whole if it is still there.
        if self._store.load_run(run_id) is None:
            raise RunNotFoundError(run_id)
        return group
