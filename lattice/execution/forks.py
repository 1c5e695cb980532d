"""Children that user code forks: they end where they come back to Lattice's code, and when they are told to.

A forked child that went on would report a result in its parent's name. Counting forks instead of asking
for the process id costs no system call.

The engine's handler of SIGTERM raises an exception, which is lost where it strikes a child that is just
being born; a `multiprocessing` pool that ends its children then waits for ever. So SIGTERM gets its
default action back in children, and is held back until it has.
"""

from __future__ import annotations

import os
import signal

_generation = 0


def _hold_back() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _born() -> None:
    global _generation
    _generation += 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_through()


os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_born)


def generation() -> int:
    """A number that differs in this process from what it was in the process that forked it."""
    return _generation


def leave_if_forked(since: int, error: BaseException | None = None) -> None:
    """Ends this process if it was forked after `generation()` was `since`.

    The exit status is that of a script that ended with `error`.
    """
    if _generation == since:
        return
    status = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code
        status = 0 if code is None else code if isinstance(code, int) else 1
    os._exit(status & 0xFF)
