"""Signal handlers that come before those of the server and hand on to them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Handler = Callable[[int, FrameType | None], object]


class SignalHandlers:
    """Calls `work` on SIGTERM and SIGINT, then does what would have been done without it.

    A server such as uvicorn sets its own handlers when it runs and puts back what it found, so the
    handlers may be installed twice: when the app is made, and again when the server starts it.
    Outside the main thread, where Python allows no handlers, nothing is installed.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._previous: list[dict[int, Handler | int | None]] = []

    def install(self) -> bool:
        """Puts the handlers in front. Returns False if they are already, or may not be."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if all(signal.getsignal(number) == self._handle for number in _SIGNALS):
            return False
        self._previous.append({number: signal.signal(number, self._handle) for number in _SIGNALS})
        return True

    def remove(self) -> None:
        """Undoes the last `install`, except where somebody else has come in front since."""
        for number, handler in self._previous.pop().items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._work()
        previous = self._previous[-1][number] if self._previous else signal.SIG_DFL
        if callable(previous):
            previous(number, frame)
        elif previous != signal.SIG_IGN:
            # The default action of both is to end the process, with a status that says so.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
