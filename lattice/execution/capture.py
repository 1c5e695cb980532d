"""What user code prints and logs while an attempt runs: passed on as before, and recorded for its run.

`sys.stdout` and `sys.stderr` of this process become tees, once and for good, and records that the user's
loggers let through are seen on their way to the handlers. Whose text it is, a context variable tells, which
coroutines and `asyncio.to_thread` inherit. A plain thread does not; its text goes to the attempt that runs
if there is only one, so what a thread prints that outlives its attempt goes to the next in its process. What
bypasses `sys.stdout` (child processes, C code, `sys.stdout.buffer`) is only passed on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from lattice.execution import secrets
from lattice.execution.recorder import Recorder
from lattice.ports.execution import LogEntry

#: Loggers of the service and of the engine.
_NOT_THE_USERS = ("lattice", "deployments", "ray")

#: So many of the secrets before stay masked.
_MOST_OLD = 100

Result = TypeVar("Result")


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


class SeenSecrets:
    """Values of secrets that this process has had, which stay masked in what it prints: threads may know them still."""

    def __init__(self) -> None:
        #: The newest last.
        self.values: tuple[str, ...] = ()

    def add(self, newest: Iterable[str]) -> None:
        """Masks these, too."""
        last = dict.fromkeys(newest)
        before = {*self.values}
        old = [value for value in self.values if value not in last]
        self.values = (*old[-_MOST_OLD:], *last)
        if {*self.values} != before:
            mask(self.values)


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
