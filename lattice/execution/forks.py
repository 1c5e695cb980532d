"""Children that user code forks and that come back to Lattice's own code, where they must end.

A forked child that went on would report a result in its parent's name. Counting forks instead of asking
for the process id costs no system call.
"""

from __future__ import annotations

import os

_generation = 0


def _count() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_count)


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
