"""Says that an attempt has begun, if it does not end at once. One small thread per worker process.

Most attempts end within milliseconds, and their end says when they began; a note for each would cost more
than the attempt. So the thread looks only at what still runs a moment after it began, and short attempts
do not even wake it. What goes on is announced again, more and more rarely, as a note may get lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

#: Seconds that an attempt must have run before its start is announced: less than anybody who watches would see. A note
#: costs a message and a commit, which the end of an attempt that is as short as that would have to wait for.
DELAY = 0.02
#: Seconds until it is announced again, which double each time, and the longest.
_AGAIN, _LONGEST = 1.0, 60.0

_logger = logging.getLogger(__name__)


class _Running:
    """An attempt, when it is to be announced next, and how long after that again."""

    __slots__ = ("announce", "announced", "due", "pause")

    def __init__(
        self, announce: Callable[[], None], announced: bool, due: float, pause: float
    ) -> None:
        self.announce = announce
        self.announced = announced
        self.due = due
        self.pause = pause


class Announcer:
    """Calls, in its own thread, the `announce` of an attempt that runs longer than `delay` seconds."""

    def __init__(
        self,
        delay: float = DELAY,
        sleep: Callable[[float], object] = time.sleep,
        again: float = _AGAIN,
    ) -> None:
        self._delay = delay
        self._again = again
        self._sleep = sleep
        self._current: _Running | None = None
        self._asleep = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, announce: Callable[[], None], *, announced: bool = False) -> None:
        """An attempt begins; the one before it has ended. `announced`: somebody else has done so a first time."""
        due = time.monotonic() + (self._again if announced else self._delay)
        self._current = _Running(announce, announced, due, self._again)
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._watch, name="lattice-announcer", daemon=True
            )
            self._thread.start()
        # The thread sets `_asleep` and then looks at `_current`, in the opposite order to here: one of
        # the two sees the other.
        elif self._asleep:
            self._wake.set()

    def end(self) -> None:
        """The attempt has ended; it is not announced any more, unless that is under way."""
        self._current = None

    def _watch(self) -> None:
        while True:
            current = self._current
            remaining = None if current is None else current.due - time.monotonic()
            if current is None or (current.announced and remaining is not None and remaining > 0):
                self._wake.clear()
                self._asleep = True
                if self._current is current:
                    self._wake.wait(remaining)
                self._asleep = False
            elif remaining is not None and remaining > 0:
                self._sleep(remaining)
            else:
                self._announce(current)

    def _announce(self, current: _Running) -> None:
        current.announced = True
        current.due = time.monotonic() + current.pause
        current.pause = min(2 * current.pause, _LONGEST)
        try:
            current.announce()
        except Exception:
            # The report of the end makes up for a start that was not announced.
            _logger.warning("the start of an attempt could not be announced", exc_info=True)
