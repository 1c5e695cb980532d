"""What tasks print, from the dispatcher's reports to the store and to subscribers.

Of each attempt the beginning is stored as it comes, which is little and never changes. What comes after it is
held here, bounded, and stored when the attempt ends: so an attempt that prints for days costs no writes for
it. If this process dies, what it held of attempts that run is lost, as are these.

Reports may come late, twice, or not at all: an offset that was seen is not seen again, and what is reported of
an attempt that is over is ignored, except for a short while after it was cancelled, when its last words are
still under way. That is shorter than what housekeeping waits before it looks for the rows of a deleted run.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lattice.ids import RunId, TaskId
from lattice.orchestrator.feed import Feed
from lattice.orchestrator.journal import Journal
from lattice.ports.environment import Clock
from lattice.ports.execution import LogEntry, TaskLogged
from lattice.ports.service import LogMessages
from lattice.ports.store import LogRecord, PutLog
from lattice.workflow.messages import iso_time

#: Seconds for which a cancelled attempt may still report what it printed.
_LAST_WORDS = 5.0
#: Longest row, in bytes of text.
_ROW = 64 * 1024

_encode = json.JSONEncoder(separators=(",", ":")).encode

Key = tuple[RunId, TaskId, int]
#: Entries of an attempt, at least one.
Part = tuple[TaskId, int, Sequence[LogEntry]]


@dataclass(slots=True)
class _Attempt:
    """What is known of what an attempt has printed.

    Attributes:
        room: bytes that the beginning, which has no gaps, may still grow by.
        seen: the offset of the last entry that was taken, and where it ended.
        stored: where the beginning ends, which is in the store.
        tail: what comes after it.
        remember: prevents that it is soon forgotten, as it will be if it was cancelled.
    """

    room: int
    seen: int = -1
    seen_end: int = 0
    stored: int = 0
    tail: list[LogEntry] = field(default_factory=list)
    tail_cost: int = 0
    remember: Callable[[], None] | None = None


class TaskLogs:
    """Takes what attempts print. `limit`: bytes that are kept of each, half of the beginning, half of the end."""

    def __init__(self, journal: Journal, feed: Feed, clock: Clock, limit: int) -> None:
        self._journal = journal
        self._feed = feed
        self._clock = clock
        self._half = limit // 2
        self._attempts: dict[Key, _Attempt] = {}

    def take(self, run_id: RunId, logged: TaskLogged, *, running: bool) -> None:
        """Takes what is new in a report. `running`: the attempt is under way."""
        key = run_id, logged.task_id, logged.attempt
        attempt = self._attempts.get(key)
        if attempt is None:
            if not running or self._half <= 0:
                return
            attempt = self._attempts[key] = _Attempt(self._half)
        entries = [_bounded(entry, self._half) for entry in logged.entries]
        fresh = [entry for entry in entries if entry.offset > attempt.seen]
        before = attempt.seen_end
        if fresh:
            attempt.seen, attempt.seen_end = fresh[-1].offset, fresh[-1].end
        if logged.final:
            # All of the end, and what was lost of the beginning; what was told of it before has gaps.
            attempt.tail.clear()
            attempt.tail_cost = 0
            kept = [entry for entry in entries if entry.offset >= attempt.stored]
        else:
            kept = fresh
        beginning = []
        for entry in kept:
            if attempt.room > 0 and entry.offset == attempt.stored:
                attempt.room -= entry.cost
                attempt.stored = entry.end
                beginning.append(entry)
            else:
                attempt.tail.append(entry)
                attempt.tail_cost += entry.cost
        if attempt.remember is not None:
            # There will be no end to store it at.
            beginning += attempt.tail
            attempt.tail.clear()
            attempt.tail_cost = 0
        dropped = 0
        while attempt.tail_cost > self._half and dropped < len(attempt.tail) - 1:
            attempt.tail_cost -= attempt.tail[dropped].cost
            dropped += 1
        del attempt.tail[:dropped]
        # Of what needs no place in the store, nothing waits for a database that is away.
        heard = self._journal.outage is None and self._feed.is_heard(run_id)
        if beginning or (fresh and heard):
            # In the order of the run's messages, which are told when they are durable.
            self._journal.append([*_writes(key, beginning)], lambda: self._tell(key, fresh, before))

    def _tell(self, key: Key, entries: Sequence[LogEntry], before: int) -> None:
        run_id, task_id, attempt = key
        if entries and self._feed.is_heard(run_id):
            self._feed.tell_logs(run_id, messages(run_id, task_id, attempt, entries, before))

    def end(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """An attempt has ended: stores what is held of it."""
        key = run_id, task_id, attempt
        found = self._attempts.pop(key, None)
        if found is None:
            return
        if found.remember is not None:
            found.remember()
        if found.tail:
            self._journal.append([*_writes(key, found.tail)])

    def cancelled(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """An attempt is being ended, and may have something to say yet."""
        if self._half <= 0:
            return
        key = run_id, task_id, attempt
        found = self._attempts.setdefault(key, _Attempt(self._half))
        if found.tail:
            self._journal.append([*_writes(key, found.tail)])
            found.tail.clear()
            found.tail_cost = 0
        found.remember = self._clock.call_later(_LAST_WORDS, functools.partial(self._forget, key))

    def _forget(self, key: Key) -> None:
        self._attempts.pop(key, None)

    def stop(self) -> None:
        """Stores what is held."""
        for key in [*self._attempts]:
            self.end(*key)

    def held(self, run_id: RunId, task_id: TaskId | None = None) -> list[Part]:
        """What is not stored yet of a run, or of one of its tasks."""
        return [
            (each, attempt, [*found.tail])
            for (run, each, attempt), found in self._attempts.items()
            if run == run_id and task_id in (None, each) and found.tail
        ]


def _bounded(entry: LogEntry, most: int) -> LogEntry:
    """User code could have forged an entry of any length."""
    return entry if len(entry.text) <= most else replace(entry, text=entry.text[:most])


def _writes(key: Key, entries: Iterable[LogEntry]) -> Iterator[PutLog]:
    """Rows that hold `entries`."""
    row: list[LogEntry] = []
    size = 0
    for entry in entries:
        if row and size + entry.size > _ROW:
            yield PutLog(*key, row[0].offset, _document(row))
            row, size = [], 0
        row.append(entry)
        size += entry.size
    if row:
        yield PutLog(*key, row[0].offset, _document(row))


def _document(entries: Sequence[LogEntry]) -> str:
    return _encode([entry.fields() for entry in entries])


def stored(record: LogRecord) -> Part:
    """What a row holds."""
    entries = [LogEntry(*fields) for fields in json.loads(record.document)]
    return record.task_id, record.attempt, entries


def described(attempt: int, entry: LogEntry, cut: int) -> dict[str, object]:
    """An entry for people. `cut`: bytes before it that were not kept."""
    return {
        "attempt": attempt,
        "offset": entry.offset,
        "time": iso_time(entry.time),
        "stream": entry.stream,
        "level": entry.level,
        "logger": entry.logger,
        "text": entry.text,
        "cut": cut,
    }


def messages(
    run_id: RunId, task_id: TaskId, attempt: int, entries: Iterable[LogEntry], before: int
) -> LogMessages:
    """Messages about `entries`. `before`: where the one before them ended."""
    texts = []
    for entry in entries:
        about = described(attempt, entry, max(0, entry.offset - before))
        data: Mapping[str, object] = {"run_id": run_id, "task_id": task_id, **about}
        texts.append((entry.offset, _encode({"type": "task_log", "data": data})))
        before = entry.end
    return LogMessages(task_id, attempt, tuple(texts))
