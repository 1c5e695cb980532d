"""What user code prints and logs while an attempt runs: passed on as before, and recorded for its run.

`sys.stdout` and `sys.stderr` of this process become tees, once and for good, and records that the user's
loggers let through are seen on their way to the handlers. Whose text it is, a context variable tells, which
coroutines and `asyncio.to_thread` inherit. A plain thread does not; its text goes to the attempt that runs
if there is only one, so what a thread prints that outlives its attempt goes to the next in its process. What
bypasses `sys.stdout` (child processes, C code, `sys.stdout.buffer`) is only passed on.

A record is bounded: the beginning stays, and of the rest the end. What is there is told from time to time by
one small thread, so that something is known of an attempt that is killed; the report of its end repeats all.
An attempt that prints nothing costs a recorder, a few microseconds, and no message.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar

# The functions themselves, as tests in user code put their own into the module.
from time import monotonic, time
from typing import Any, TypeVar

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
#: Loggers of the service and of the engine.
_NOT_THE_USERS = ("lattice", "deployments", "ray")

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class _Piece:
    """Text of one stream. Grows as long as it was not told."""

    __slots__ = ("data", "level", "logger", "offset", "size", "stream", "time")

    def __init__(
        self, offset: int, stream: str, data: bytes, level: str | None, logger: str | None
    ) -> None:
        self.offset = offset
        self.time = time()
        self.stream = stream
        self.level = level
        self.logger = logger
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
        return LogEntry(offset, self.time, self.stream, text, self.level, self.logger)


def _boundary(data: bytes, at: int) -> int:
    """The first place from `at` on where a character begins."""
    while at < len(data) and data[at] & 0xC0 == 0x80:
        at += 1
    return at


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
        self._masks: dict[object, Masking] = {}
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
                self._take(stream, text, None, None)

    def mask(self, place: object, text: str) -> str:
        """What can be told of `text`, which comes after others at the same place, a stream."""
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
            if isinstance(place, _Tee):
                place.pass_on(text)
            elif text:
                self._take(str(place), text, None, None)

    def log(self, record: logging.LogRecord) -> None:
        """Takes a record of a logger."""
        if self._closed:
            return
        try:
            text = _FORMATTER.format(record)
        except Exception:  # the arguments do not fit the message; the handlers complain about it
            text = record.msg if isinstance(record.msg, str) else object.__repr__(record.msg)
        text = secrets.masked(text, self._hidden)
        self._take("log", f"{text}\n", record.levelname, record.name)

    def _take(self, stream: str, text: str, level: str | None, logger: str | None) -> None:
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
                self._put(stream, beginning, level, logger)
                self._printed += skipped
            self._put(stream, data, level, logger)
            first = not self._due
            self._due = True
        if first:
            _teller.wait_for(self, _PERIOD if self._told else _FIRST)

    def _put(self, stream: str, data: bytes, level: str | None, logger: str | None) -> None:
        start = 0
        if self._room > 0:
            start = _boundary(data, min(len(data), self._room))
            for piece in self._pieces(self._head, stream, data[:start], level, logger):
                self._head.append(piece)
                self._room -= LogEntry.OVERHEAD
            self._room -= start
        if start < len(data):
            left = _boundary(data, max(start, len(data) - self._half))
            self._printed += left - start
            before = len(self._tail)
            rest = data[left:]
            for piece in self._pieces(self._tail, stream, rest, level, logger):
                self._tail.append(piece)
            self._tail_cost += len(rest) + (len(self._tail) - before) * LogEntry.OVERHEAD
            while self._tail_cost > self._half and len(self._tail) > 1:
                self._tail_cost -= self._tail.popleft().cost

    def _pieces(
        self,
        there: list[_Piece] | deque[_Piece],
        stream: str,
        data: bytes,
        level: str | None,
        logger: str | None,
    ) -> Iterator[_Piece]:
        """`data` in new pieces, after what the last of those that are there can take."""
        last = there[-1] if there else None
        start = 0
        if (
            last is not None
            and level is None
            and last.stream == stream
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
            piece = _Piece(self._printed, stream, data[start:end], level, logger)
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

    def wait_for(self, recorder: Recorder, seconds: float) -> None:
        """Flushes `recorder` in so many seconds."""
        self._due[recorder] = monotonic() + seconds
        self._wake.set()
        with _changing:
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


_FORMATTER = logging.Formatter("%(message)s")
_teller = _Teller()
_active: tuple[Recorder, ...] = ()
# Taken again by the thread that has it, as a recorder's.
_changing = threading.RLock()
#: Stands for nobody: what is printed is passed on only.
_NOBODY = Recorder(0, lambda entries: None)
#: Masks while nothing is recorded.
_standing = _NOBODY
_current: ContextVar[Recorder | None] = ContextVar("lattice_recorder", default=None)


def _recorder() -> Recorder | None:
    found = _current.get()
    if found is None and len(active := _active) == 1:
        return active[0]
    return None if found is _NOBODY else found


def _without_secrets(tee: _Tee, text: str) -> str:
    """`text` without what is hidden of any attempt that runs, as it may come from a handler or a thread."""
    for recorder in _active or (_standing,):
        text = recorder.mask(tee, text)
    return text


def _unrecorded(act: Callable[..., Result], *args: Any) -> Result:
    """Calls what passes text on, which may be printed or logged once more on its way."""
    token = _current.set(_NOBODY)
    try:
        return act(*args)
    finally:
        _current.reset(token)


@contextlib.contextmanager
def recording(
    limit: int, tell: Callable[[list[LogEntry]], None], hidden: Sequence[str] = ()
) -> Iterator[Recorder]:
    """Records what user code prints and logs inside, `limit` bytes of it; with 0, nothing.

    Of `hidden`, secrets, neither the record nor what is passed on says more than that they are there.
    """
    global _active
    recorder = Recorder(limit, tell, hidden)
    if limit <= 0 and not hidden:
        yield recorder
        return
    _install()
    token = _current.set(recorder)
    try:
        with _changing:
            _active = (*_active, recorder)
        with secrets.hidden(hidden):
            yield recorder
    finally:
        recorder.end()
        with _changing:
            _active = tuple(each for each in _active if each is not recorder)
        _current.reset(token)


def mask(hidden: Sequence[str]) -> None:
    """Masks `hidden`, in place of what was given before, also where nothing is recorded, as long as this process lives.

    So in what threads print that outlive what started them, and destructors.
    """
    global _standing
    _install()
    before, _standing = _standing, Recorder(0, lambda entries: None, hidden)
    before.end()


def take(stream: str, text: str) -> None:
    """Records what another process wrote for the attempt that runs here; it is not passed on."""
    recorder = _recorder()
    if recorder is not None:
        recorder.write(stream, text)


def flush() -> None:
    """Tells at once what the attempt has printed of which nobody will read the end's report."""
    recorder = _recorder()
    if recorder is not None:
        recorder.flush()


class _Tee(io.TextIOBase):
    """A stream that records what is written to it. All else is the stream's own business."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        write: Callable[[str], int] = self._stream.write
        recorder = _recorder()
        shown = _without_secrets(self, text)
        if recorder is None:
            write(shown)
            return len(text)
        # Below may be another tee, under a wrapper that user code has put over it in an attempt before.
        _unrecorded(write, shown)
        recorder.write(self._name, text)
        return len(text)

    def pass_on(self, text: str) -> None:
        """Writes what was held back."""
        if text:
            _unrecorded(self._stream.write, text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]  # as for any text
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return int(self._stream.fileno())

    def isatty(self) -> bool:
        return bool(self._stream.isatty())

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]  # the base class has plain attributes
        return str(self._stream.encoding)

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # the same
        found: str | None = self._stream.errors
        return found

    @property
    def newlines(self) -> Any:  # type: ignore[override]  # the same
        return self._stream.newlines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by name, as `cloudpickle` does with the streams that are there without it.
        return getattr, (sys, self._name)


def _install() -> None:
    """Puts the tees in place, also where something has replaced them since the last attempt."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Tee):
            setattr(sys, name, _Tee(stream, name))
    if logging.Logger.callHandlers is not _call_handlers:
        logging.Logger.callHandlers = _call_handlers  # type: ignore[method-assign, assignment]


_handlers_called = logging.Logger.callHandlers


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Takes the place of the method of loggers.

    A handler at the root would keep `logging.basicConfig` and the handler of last resort, which look
    whether there is one, from working as users know them.
    """
    recorder = _recorder()
    if recorder is None:
        _handlers_called(logger, record)
        return
    _unrecorded(_handlers_called, logger, record)
    if logger.name.partition(".")[0] not in _NOT_THE_USERS:
        recorder.log(record)


def _forget_in_child() -> None:
    """A forked child has no thread that would tell, and perhaps a lock that nobody will release."""
    global _active, _changing, _standing
    # In every context, so not by forgetting whose text it is.
    for recorder in _active:
        recorder.close()
    _active, _standing = (), _NOBODY
    _changing = threading.RLock()


os.register_at_fork(after_in_child=_forget_in_child)
