"""The record of what an attempt prints and logs, within bounds.

The beginning stays, and of the rest the end. What is there is told from time to time by one small thread, so that
something is known of an attempt that is killed; the report of its end repeats all. An attempt that prints nothing
costs a recorder, a few microseconds, and no message.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

# The functions themselves, as tests in user code put their own into the module.
from time import monotonic, time
from typing import NamedTuple, Protocol

from lattice.execution import secrets
from lattice.execution.secrets import Masking
from lattice.ports.execution import LogEntry

#: Seconds from an attempt's first text until it is told, and between two tellings. Most attempts end before
#: the first, and their text comes with the report of the end alone.
_FIRST = 0.05
_PERIOD = 0.5
#: Of what comes after the beginning, this part of the bound is told each time.
_WINDOW = 16
#: Text that comes in small pieces is put together to pieces of this many bytes at most; longer text is divided.
_PIECE = 4 * 1024

_FORMATTER = logging.Formatter("%(message)s")
_logger = logging.getLogger(__name__)


class _Origin(NamedTuple):
    """Where text comes from, and when, in seconds since the epoch."""

    time: float
    stream: str
    level: str | None = None
    logger: str | None = None


class _Piece:
    """Text of one stream. Grows as long as it was not told."""

    __slots__ = ("data", "offset", "origin", "size")

    def __init__(self, offset: int, origin: _Origin, data: bytes) -> None:
        self.offset = offset
        self.origin = origin
        self.data = [data]
        self.size = len(data)

    @property
    def cost(self) -> int:
        return self.size + LogEntry.OVERHEAD

    def entry(self, most: int | None = None) -> LogEntry:
        """The piece, or the last `most` bytes of it, as it is told."""
        data = b"".join(self.data)
        offset = self.offset
        if most is not None and most < len(data):
            start = _boundary(data, len(data) - most)
            offset, data = offset + start, data[start:]
        text = data.decode("utf-8", "replace")
        origin = self.origin
        return LogEntry(offset, origin.time, origin.stream, text, origin.level, origin.logger)


def _boundary(data: bytes, at: int) -> int:
    """The first place from `at` on where a character begins."""
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at


class Passage(Protocol):
    """Where text is passed on whose secrets are masked."""

    def pass_on(self, text: str) -> None:
        """Writes what was held back."""


class Recorder:
    """The record of an attempt, or of a batch of them.

    Args:
        limit: bytes that are kept: half of it of the beginning, half of the end.
        tell: sends what is new, on a thread of its own.
        hidden: secrets, which are masked wherever they stand whole in what is printed or logged.
    """

    def __init__(
        self,
        limit: int,
        tell: Callable[[list[LogEntry]], None],
        hidden: Sequence[str] = (),
    ) -> None:
        self._hidden = hidden
        self._masks: dict[str | Passage, Masking] = {}
        # Taken again by the thread that has it where a destructor prints that runs just then.
        self._lock = threading.RLock()
        self._half = limit // 2
        self._window = max(limit // _WINDOW, 1)
        # As whole pieces go from the end, a piece is a small part of it.
        self._piece = max(1, min(_PIECE, self._half // 8))
        self._room = self._half
        self._tell = tell
        self._head: list[_Piece] = []
        self._tail: deque[_Piece] = deque()
        self._tail_cost = 0
        self._printed = 0
        self._told = 0
        self._closed = limit <= 0
        self._due = False

    def write(self, stream: str, text: str) -> None:
        """Takes printed text."""
        if text and not self._closed:
            text = self.mask(stream, text)
            if text:
                self._take(_Origin(time(), stream), text)

    def take_over(self, entries: Iterable[LogEntry]) -> None:
        """Takes what another recorder has kept, as it was."""
        if not self._closed:
            for entry in entries:
                origin = _Origin(entry.time, entry.stream, entry.level, entry.logger)
                self._take(origin, entry.text)

    def mask(self, place: str | Passage, text: str) -> str:
        """What can be told of `text`, which comes after others at the same place."""
        if not self._hidden:
            return text
        with self._lock:
            masking = self._masks.get(place)
            if masking is None:
                masking = self._masks[place] = Masking(self._hidden)
            return masking.take(text)

    def _rest(self) -> None:
        """Takes, or passes on, what was held back, as the attempt has ended."""
        for place, masking in self._masks.items():
            text = masking.rest()
            if not isinstance(place, str):
                place.pass_on(text)
            elif text:
                self._take(_Origin(time(), place), text)

    def log(self, record: logging.LogRecord) -> None:
        """Takes a record of a logger."""
        if self._closed:
            return
        try:
            text = _FORMATTER.format(record)
        except Exception:  # the arguments do not fit the message; the handlers complain about it
            text = record.msg if isinstance(record.msg, str) else object.__repr__(record.msg)
        text = secrets.masked(text, self._hidden)
        self._take(_Origin(time(), "log", record.levelname, record.name), f"{text}\n")

    def _take(self, origin: _Origin, text: str) -> None:
        skipped = 0
        if len(text) > 4 * self._half:
            # Not all of it is encoded, as it may be much.
            skipped = len(text) - 2 * self._half
            beginning = str.encode(text[: self._half], "utf-8", "backslashreplace")
            data = str.encode(text[-self._half :], "utf-8", "backslashreplace")
        else:
            beginning, data = b"", str.encode(text, "utf-8", "backslashreplace")
        with self._lock:
            if beginning:
                self._put(origin, beginning)
                self._printed += skipped
            self._put(origin, data)
            first = not self._due
            self._due = True
        if first:
            _teller.wait_for(self, _PERIOD if self._told else _FIRST)

    def _put(self, origin: _Origin, data: bytes) -> None:
        start = 0
        if self._room > 0:
            start = _boundary(data, min(len(data), self._room))
            for piece in self._pieces(self._head, origin, data[:start]):
                self._head.append(piece)
                self._room -= LogEntry.OVERHEAD
            self._room -= start
        if start < len(data):
            left = _boundary(data, max(start, len(data) - self._half))
            self._printed += left - start
            before = len(self._tail)
            rest = data[left:]
            for piece in self._pieces(self._tail, origin, rest):
                self._tail.append(piece)
            self._tail_cost += len(rest) + (len(self._tail) - before) * LogEntry.OVERHEAD
            while self._tail_cost > self._half and len(self._tail) > 1:
                self._tail_cost -= self._tail.popleft().cost

    def _pieces(
        self, there: list[_Piece] | deque[_Piece], origin: _Origin, data: bytes
    ) -> Iterator[_Piece]:
        """`data` in new pieces, after what the last of those that are there can take."""
        last = there[-1] if there else None
        start = 0
        if (
            last is not None
            and origin.level is None
            and last.origin.stream == origin.stream
            and last.offset >= self._told
            and last.offset + last.size == self._printed
            and last.size < self._piece
        ):
            start = _boundary(data, min(len(data), self._piece - last.size))
            last.data.append(data[:start])
            last.size += start
            self._printed += start
        while start < len(data):
            end = _boundary(data, min(len(data), start + self._piece))
            piece = _Piece(self._printed, origin, data[start:end])
            self._printed += end - start
            start = end
            yield piece

    def flush(self) -> None:
        """Tells what is new: all of the beginning, of the rest the last."""
        # Before the lock, which nobody may ever release in a forked child.
        if self._closed:
            return
        try:
            with self._lock:
                self._due = False
                if self._told == self._printed:
                    return
                entries = self._new()
                self._told = self._printed
            self._tell(entries)
        except Exception:
            # The report of the end makes up for what was not told.
            _logger.warning("what a task printed could not be told", exc_info=True)

    def _new(self) -> list[LogEntry]:
        found: list[LogEntry] = []
        left = self._window
        for piece in reversed(self._tail):
            if piece.offset < self._told or left <= 0:
                break
            found.append(piece.entry(left))
            left -= piece.cost
        for piece in reversed(self._head):
            if piece.offset < self._told:
                break
            found.append(piece.entry())
        found.reverse()
        return found

    def close(self) -> None:
        """Takes and tells nothing any more."""
        self._closed = True

    def end(self) -> None:
        """Closes it, after what was held back."""
        with contextlib.suppress(Exception), self._lock:  # a stream may be closed
            self._rest()
        self.close()

    def kept(self) -> list[LogEntry]:
        """All that is kept, once the attempt has ended."""
        with self._lock:
            self._rest()
            return [piece.entry() for piece in (*self._head, *self._tail)]


class _Teller:
    """Has recorders tell what is new. Its thread begins with the first text and sleeps while there is none."""

    def __init__(self) -> None:
        self._due: dict[Recorder, float] = {}
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        # Taken again by the thread that has it, as a recorder's.
        self._starting = threading.RLock()

    def wait_for(self, recorder: Recorder, seconds: float) -> None:
        """Flushes `recorder` in so many seconds."""
        self._due[recorder] = monotonic() + seconds
        self._wake.set()
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="lattice-logs", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:
                    # There are too many threads. The report of the end makes up for it.
                    self._thread = None
                    self._due.pop(recorder, None)

    def _run(self) -> None:
        while True:
            self._wake.clear()
            # A copy that is made at once, as other threads add to it.
            due = self._due.copy()
            now = monotonic()
            for recorder, at in due.items():
                if at <= now:
                    del self._due[recorder]
                    recorder.flush()
            later = [at for at in due.values() if at > now]
            self._wake.wait(min(later) - now if later else None)


_teller = _Teller()


def _renew_in_child() -> None:
    """A forked child has no thread that would tell, and perhaps a lock that nobody will release."""
    global _teller
    _teller = _Teller()


os.register_at_fork(after_in_child=_renew_in_child)
